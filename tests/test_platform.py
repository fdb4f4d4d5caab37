"""Everything that only Linux has is behind one header in C (and one module in Python: test_platform_python)."""

import re
from pathlib import Path

import pytest

from tests.test_platform_python import NAMES

SOURCE = Path(__file__).parent.parent / "src/copyless"
NATIVE = SOURCE / "_core/native"
SEAM = {"platform.h"} | {path.name for path in NATIVE.glob("linux_*.c")}
OTHER_MAPPINGS = r"\bMAP_(?!SHARED\b|PRIVATE\b|FIXED\b|FAILED\b|ANONYMOUS\b)\w+"
ONLY_LINUX = re.compile(
    r"SYS_\w+|\bsyscall\(|\bfutex\w*\(|FUTEX_\w+|F_OFD_\w+|O_TMPFILE|O_PATH|/proc/|/sys/fs|\bprctl\(|PR_SET_\w+"
    r"|MADV_\w+|\bmadvise\("
    r"|\bmemfd_create\(|\bpidfd_\w+\(|\bgettid\(|\bsched_[gs]etaffinity\(|\bsched_getcpu\(|\bstatfs\("
    r"|\bfstatfs\(|_SUPER_MAGIC"
    r"|<linux/|<sys/(?:syscall|prctl|vfs|random|epoll|inotify)\.h>|sys/(?:eventfd|timerfd|signalfd)\.h"
    r"|\bposix_fallocate\("
    r"|\beventfd\w*\(|EFD_\w+|\bepoll_\w+\(|\b(?:timerfd|inotify)_\w+\(|\bsignalfd\(|\bdup3\(|\bpipe2\("
    r"|\baccept4\(|\bvfork\(|\bclone3?\("
    rf"|\bclose_range\(|\bgetrandom\(|CLOCK_BOOTTIME|\bpthread_\w+_np\(|\brenameat2\(|\bmremap\(|\bfallocate\("
    rf"|{OTHER_MAPPINGS}"
)
PLACES = re.compile(r"/proc/|/sys/|/dev/shm")


def found_in(text: str) -> list[tuple[int, str]]:
    """(line, what) of Linux-only things in a C source, without comments; in texts for users, paths of Linux."""
    bare = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment.group().count("\n"), text, flags=re.S)
    return named_in(bare)


def named_in(bare: str) -> list[tuple[int, str]]:
    without = re.sub(r'(?<!include )(?<!from )"[^"\n]*"', lambda string: " " * len(string.group()), bare)
    matches = [*ONLY_LINUX.finditer(without), *PLACES.finditer(bare)]
    return sorted((bare.count("\n", 0, match.start()) + 1, match.group()) for match in matches)


def found_in_cython(text: str) -> list[tuple[int, str]]:
    """The same for a Cython source, without docstrings and comments."""
    bare = re.sub(r'"""(?:.|\n)*?"""', lambda said: "\n" * said.group().count("\n"), text)
    bare = re.sub(r"#.*", "", bare)
    words = [
        (bare.count("\n", 0, match.start()) + 1, match.group())
        for match in re.finditer(r"\b[A-Za-z]\w*", bare)
        if NAMES.fullmatch(match.group()) and not re.fullmatch(r"MAP_\w+", match.group())
    ]
    return sorted({*named_in(bare), *words})


def sources() -> list[Path]:
    return sorted(
        path for pattern in ("*.c", "*.h", "structures/*.c", "structures/*.h") for path in NATIVE.glob(pattern)
    )


def test_nothing_else_in_c_names_what_only_linux_has():
    assert len(SEAM) == 5
    wrong = [
        f"{path.relative_to(NATIVE)}:{line}: {what}"
        for path in sources()
        if path.name not in SEAM
        for line, what in found_in(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_in_cython_names_what_only_linux_has():
    paths = sorted([*SOURCE.rglob("*.pyx"), *SOURCE.rglob("*.pxd")])
    assert len(paths) > 20
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}: {what}"
        for path in paths
        for line, what in found_in_cython(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "planted",
    [
        "fcntl(fd, F_OFD_SETLK, &fl);", 'open("/proc/self/maps", 0);', "madvise(p, n, 4);", "syscall(449, p);",
        "eventfd(0, 0);", "dup3(a, b, 0);", "clock_gettime(CLOCK_BOOTTIME, &t);", "getrandom(p, 8, 0);", "vfork();",
        'fail("read /proc/sys/kernel/random/boot_id");', "#include <sys/random.h>", "pthread_setname_np(t, n);",
        "mmap(p, n, 3, MAP_POPULATE, 1, 0);",
    ],
)  # fmt: skip
def test_a_name_of_linux_is_seen(planted):
    assert found_in("/* F_OFD_SETLK */\nint x;\n" + planted)[0][0] == 3


@pytest.mark.parametrize(
    "planted",
    [
        'cdef extern from "sys/eventfd.h" nogil:', "    int eventfd(unsigned int value, int flags)",
        "    os.eventfd_read(fd)", "    enum: EFD_CLOEXEC",
        'path = b"/dev/shm/x"', "os.sched_getaffinity(0)",
        "os.posix_fallocate(fd, 0, n)",
    ],
)  # fmt: skip
def test_a_name_of_linux_is_seen_in_cython(planted):
    text = f'"""Of eventfd(0, 0)."""\n# EFD_CLOEXEC\ncdef int x\n{planted}\n'
    assert {line for line, _ in found_in_cython(text)} == {4}


def test_the_page_tells_of_each_function_of_the_header():
    header = re.sub(r"/\*.*?\*/", "", (NATIVE / "platform.h").read_text(), flags=re.S)
    names = set(re.findall(r"\b(cl_\w+)\([^;{]*\)\s*[;{]", header)) - set(
        re.findall(r"return [^;]*?\b(cl_\w+)\(", header)
    )
    page = (NATIVE.parents[3] / "docs/design/platform.md").read_text().partition("## In C")[2]
    rows = set(re.findall(r"^\| `(cl_\w+)` \|", page, re.M))
    assert len(names) > 15
    assert names | {"cl_path_of_descriptor"} == rows
