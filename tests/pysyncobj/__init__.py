"""The faults of PySyncObj 0.3.17, each shown in the library as it is: what `docs/pysyncobj.md` reports.

    python -m tests.pysyncobj          all of them
    python -m tests.pysyncobj 1 14     some

Needs nothing but pysyncobj. The library is not changed in any way: a replica gets a transport of ours, which is its own
extension point, and hears from peers that are scripted.
"""
