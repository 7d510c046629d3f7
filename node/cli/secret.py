"""`meshnode secret new`: makes the file that the nodes of a mesh share."""

from pathlib import Path

from node.cli.exits import CommandError, Exit


def new(file: Path) -> int:
    """Makes a secret in `file`, readable by its owner only; never overwrites."""
    from mesh.errors import MeshError
    from mesh.secrets import MeshSecret

    path = file.expanduser()
    try:
        MeshSecret.new().save(path)
    except MeshError as error:
        if getattr(error, "code", "") != "secret_exists":
            raise
        raise CommandError(
            f"{path} exists already and is not overwritten",
            Exit.FAILED,
            "copy that file to your other machines, or name another file: meshnode secret new FILE",
        ) from None
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}", Exit.FAILED, "name another file") from None
    print(f"made {path}")
    print("Copy it to every machine of the mesh (for example with scp) and keep it readable by its owner only.")
    return Exit.OK
