"""Shared arrays in the picklers of other packages.

The tests with the packages themselves are in tests/clients/pools; `make test-clients` runs them.
"""

import pickle
import subprocess
import sys
import textwrap

import pytest

import copyless
from copyless._transfer import other_pools as _other_pools


def write(array, at):
    array[at] = at + 1
    return type(array).__name__


def run(program):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("on purpose")


def messages():
    from copyless._core import _store

    return [hold for hold in _store.snapshot()["holds"] if hold["kind"] == "message"]


def test_what_is_written_in_loky_arrives():
    loky = pytest.importorskip("joblib.externals.loky")
    array = copyless.zeros(4)
    with loky.ProcessPoolExecutor(1) as executor:
        assert executor.submit(write, array, 1).result(100) == "SharedArray"
        assert executor.submit(write, array[2:], 0).result(100) == "SharedArray"
    assert array.tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize(
    "module", ["joblib.externals.loky.backend.reduction", "loky.backend.reduction", "multiprocess.reduction"]
)
def test_a_pickler_sends_a_handle_and_takes_its_hold_back_when_it_fails(module):
    reduction = pytest.importorskip(module)
    dumps = reduction.ForkingPickler.dumps if module.startswith("multiprocess") else reduction.dumps
    array = copyless.zeros(100_000)
    data = bytes(dumps(array))
    assert len(data) < 1000
    assert len(messages()) == 1
    pickle.loads(data)[7] = 5
    assert array[7] == 5
    assert messages() == []
    with pytest.raises(Exception, match="on purpose"):
        dumps([array, Unsendable()])
    assert messages() == []


def test_a_pickler_that_comes_after_the_array_sends_a_handle_too():
    assert run(
        """
        import copyless, pickle
        array, other = copyless.zeros(100_000), copyless.zeros(100_000)
        from joblib.externals.loky.backend import reduction
        first = bytes(reduction.dumps([array, other]))
        one, two = pickle.loads(first)
        one[0], two[0] = 1, 2
        print(len(first) < 2000, array[0], other[0])
        """
    ) == ["True", "1.0", "2.0"]


def test_a_file_gets_the_data_while_such_packages_are_loaded():
    pytest.importorskip("joblib.externals.loky.backend.reduction")
    array = copyless.full(10_000, 3.0)
    data = pickle.dumps(array)
    assert len(data) > 80_000
    assert type(pickle.loads(data)).__name__ == "ndarray"


CLUSTER = """
    import sys, types, pickle, warnings
    import copyless
    from copyless._transfer import other_pools as _other_pools

    theirs = types.ModuleType({module!r})
    exec("import pickle\\ndef dumps(x): return pickle.dumps(x, 5)", vars(theirs))
    sys.modules[{module!r}] = theirs
    sys.modules.setdefault({package!r}, theirs)
"""


@pytest.mark.parametrize(
    ("module", "package", "name"),
    [("distributed.protocol.pickle", "distributed", "dask"), ("ray._private.serialization", "ray.cloudpickle", "ray")],
)
def test_a_cluster_gets_the_data_with_one_warning_and_by_name_when_allowed(module, package, name):
    assert run(
        CLUSTER.format(module=module, package=package)
        + f"""
    array = copyless.zeros(100_000, name="cluster")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        copied = theirs.dumps(array)
        theirs.dumps(array)
    print(len(told), "copyless.integrations.{name}.register" in str(told[0].message), len(copied) > 800_000)
    _other_pools.allow({name!r})
    data = theirs.dumps(array[5:])
    for again in range(2):  # it may be loaded many times
        pickle.loads(data)[again] = 7
    print(len(data) < 1000, array[5:7].tolist() == [7, 7])
    try:
        theirs.dumps(copyless.zeros(3))
    except copyless.UnnamedError as error:
        print("name=" in str(error))
    try:
        theirs.dumps(copyless.zeros(0)), theirs.dumps(copyless.zeros((2, 2), [("a", "f4")], name="records")[:, 1])
        del array
        pickle.loads(data)
    except copyless.StaleHandleError as error:
        print("persist=True" in str(error))
    """
    ) == ["1", "True", "True", "True", "True", "True", "True"]


def test_a_name_is_asked_for_again_when_the_block_is_another():
    """The name that a block had is not taken for that of the next array at its address."""
    array = copyless.zeros(1000, name="in-place")
    _other_pools._allowed.add("dask")
    try:
        assert _other_pools._by_name(array, "dask")[1][2] == "in-place"
        copyless.unlink("in-place")
        with pytest.raises(copyless.UnnamedError):
            _other_pools._by_name(array, "dask")
    finally:
        _other_pools._allowed.clear()


def test_making_an_array_loads_no_package():
    loaded = run(
        "import sys, copyless; copyless.zeros(3); print([m for m in ('loky', 'joblib', 'multiprocess', 'dask', 'ray') "
        "if m in sys.modules])"
    )
    assert loaded == ["[]"]
