"""Get mpi4py's own tests: its source distribution, of one version with a known checksum.

`make test` calls this with the directory for them. If they are there, it does nothing.
"""

import glob
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile

VERSION = "4.1.2"
SHA256 = "56860286dc45f20e8821e93cb06669e30462348bf866f685553fa4b712d58d02"


def main(target: str) -> None:
    if os.path.exists(os.path.join(target, "test_futures.py")):
        return
    with tempfile.TemporaryDirectory() as scratch:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "-q",
            "download",
            "--no-deps",
            "--no-binary",
            "mpi4py",
        ]
        subprocess.run([*pip, "-d", scratch, f"mpi4py=={VERSION}"], check=True)
        (archive,) = glob.glob(os.path.join(scratch, "mpi4py-*.tar.gz"))
        with open(archive, "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if found != SHA256:
            sys.exit(f"{archive} has checksum {found}, not {SHA256}: it is not what these tests were written for")
        os.makedirs(target, exist_ok=True)
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                directory, name = os.path.split(member.name)
                wanted = (directory == f"mpi4py-{VERSION}/test" and name.endswith(".py")) or (
                    directory == f"mpi4py-{VERSION}/demo/futures" and name == "test_futures.py"
                )
                content = tar.extractfile(member) if wanted else None
                if content is not None:
                    with open(os.path.join(target, name), "wb") as file:
                        file.write(content.read())


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
