"""Put this folder and the repository on PYTHONPATH of a daemon: SIGUSR1 makes every sync fail with EIO from then on,
SIGUSR2 every write of a file with EROFS, as after the kernel has made the file system read-only."""

import errno
import signal

from tests.sabotage import SYNC, WRITE, refuse

signal.signal(signal.SIGUSR1, lambda number, frame: refuse(SYNC, errno.EIO))
signal.signal(signal.SIGUSR2, lambda number, frame: refuse(WRITE, errno.EROFS))
