"""A write to a shared array in a pool of another package arrives, or a warning says that it will not."""

import functools
import pickle
import warnings

import pytest

import copyless
from copyless._transfer import other_pools as _other_pools


def write(array, at):
    array[at] = at + 1
    return type(array).__name__, copyless.is_shared(array)


def give_back(array):
    array[0] = 7
    return array


def no_message_is_left():
    from copyless._core import _store

    return [hold for hold in _store.snapshot()["holds"] if hold["kind"] == "message"] == []


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("on purpose")


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*shared array.*")
        yield


@pytest.fixture
def array():
    return copyless.zeros(4)


HERE = ["SharedArray", True]


def test_joblib(array):
    import joblib

    results = joblib.Parallel(2)(joblib.delayed(write)(array, i) for i in range(4))
    assert [list(each) for each in results] == [HERE] * 4
    assert array.tolist() == [1, 2, 3, 4]
    back = joblib.Parallel(2)(joblib.delayed(give_back)(array[1:]) for _ in range(2))
    assert array[1] == 7
    back[0][0] = 8
    assert array[1] == 8


@pytest.mark.parametrize("package", ["loky", "joblib.externals.loky"])
def test_loky(array, package):
    loky = pytest.importorskip(package)
    with loky.ProcessPoolExecutor(2) as executor:
        assert list(executor.submit(write, array, 1).result(60)) == HERE
        assert list(executor.submit(write, {"a": [array[::2]]}["a"][0], 1).result(60)) == HERE
        assert array.tolist() == [0, 2, 2, 0]
        with pytest.raises(Exception, match="on purpose|Could not pickle"):
            executor.submit(write, [array, Unsendable()], 0).result(60)
        executor.submit(write, array, 3).result(60)
    assert array[3] == 4
    assert no_message_is_left()


def test_loky_with_another_pickler(array):
    loky = pytest.importorskip("loky")
    from loky.backend.reduction import set_loky_pickler

    set_loky_pickler("pickle")
    try:
        with loky.ProcessPoolExecutor(1) as executor:
            assert list(executor.submit(write, array, 1).result(60)) == HERE
    finally:
        set_loky_pickler()
    assert array[1] == 2


def test_multiprocess(array):
    multiprocess = pytest.importorskip("multiprocess")
    with multiprocess.Pool(2) as pool:
        assert pool.map(functools.partial(write, array), range(2)) == [tuple(HERE)] * 2
        assert pool.map(lambda a: write(a, 2), [array]) == [tuple(HERE)]
        back = pool.apply(give_back, (array[3:],))
    back[0] = 9
    assert array.tolist() == [1, 2, 3, 9]
    queue = multiprocess.Queue()
    queue.put(array)
    queue.get(timeout=30)[0] = 5
    assert array[0] == 5
    with pytest.raises(RuntimeError, match="on purpose"):
        multiprocess.reduction.ForkingPickler.dumps([array, Unsendable()])
    assert no_message_is_left()


def test_pathos_and_p_tqdm(array):
    pathos = pytest.importorskip("pathos.multiprocessing")
    p_tqdm = pytest.importorskip("p_tqdm")
    pool = pathos.ProcessPool(2)
    assert pool.map(write, [array], [1]) == [tuple(HERE)]
    pool.close()
    pool.join()
    pool.clear()
    assert p_tqdm.p_map(write, [array], [2], num_cpus=2, disable=True) == [tuple(HERE)]
    assert array.tolist() == [0, 2, 3, 0]


def test_a_file_and_a_deep_copy_get_the_data(array):
    pytest.importorskip("multiprocess")
    import copy

    array[:] = 3
    assert type(pickle.loads(pickle.dumps(array))).__name__ == "ndarray"
    assert type(copy.deepcopy(array)).__name__ == "ndarray"
    import dill

    assert not copyless.is_shared(dill.loads(dill.dumps(array)))


# ---- Dask


@pytest.fixture(scope="module")
def dask_client():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            yield client


def test_dask_without_register_warns_once_and_copies(dask_client):
    array = copyless.zeros(1000)
    with pytest.warns(RuntimeWarning, match="Dask takes a shared array by value.*copyless.integrations.dask.register"):
        dask_client.submit(write, array, 1).result(60)
    assert array[1] == 0
    dask_client.submit(write, array, 2).result(60)  # a second warning would be an error


def test_dask_with_register(dask_client):
    import copyless.integrations.dask

    copyless.integrations.dask.register(dask_client)
    array = copyless.zeros(1000, name="pools-dask")
    assert list(dask_client.submit(write, array, 1).result(60)) == HERE
    assert list(dask_client.submit(write, array[10:], 2).result(60)) == HERE
    scattered = dask_client.scatter(array)
    assert list(dask_client.submit(write, scattered, 3).result(60)) == HERE
    assert (array[1], array[12], array[3]) == (2, 3, 4)
    back = dask_client.submit(give_back, array[20:]).result(60)
    back[1] = 5
    assert (array[20], array[21]) == (7, 5)
    dask_client.cluster.scale(3)  # a worker that starts later joins too
    dask_client.wait_for_workers(3, timeout=100)
    later = list(dask_client.scheduler_info(n_workers=-1)["workers"])
    assert len(later) == 3
    for i, worker in enumerate(later):
        assert list(dask_client.submit(write, array, 30 + i, workers=[worker]).result(60)) == HERE
    assert array[30:33].tolist() == [31, 32, 33]


def test_dask_refuses_what_has_no_name():
    assert "dask" in _other_pools._allowed
    from distributed.protocol import pickle as of_dask

    with pytest.raises(copyless.UnnamedError, match="needs a name"):
        of_dask.dumps(copyless.zeros(1000))


# ---- Ray


@pytest.fixture(scope="module")
def ray():
    module = pytest.importorskip("ray")
    try:
        module.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=100 << 20,
        )
    except Exception as error:
        pytest.skip(f"Ray does not start here: {error}")
    yield module
    module.shutdown()


def test_ray_without_register_warns_once_and_copies(ray):
    array = copyless.zeros(1000)
    task = ray.remote(lambda a: float(a.sum()))
    with pytest.warns(RuntimeWarning, match="Ray takes a shared array by value.*copyless.integrations.ray.register"):
        assert ray.get(task.remote(array), timeout=100) == 0
    assert ray.get(task.remote(array), timeout=100) == 0


def test_ray_with_register(ray):
    import copyless.integrations.ray

    copyless.integrations.ray.register()
    array = copyless.zeros(1000, name="pools-ray")
    task = ray.remote(write)
    assert list(ray.get(task.remote(array, 1), timeout=100)) == HERE
    put = ray.put(array)
    assert list(ray.get(task.remote(put, 2), timeout=100)) == HERE
    ray.get(put)[3] = 4
    back = ray.get(ray.remote(give_back).remote(array[20:]), timeout=100)
    back[1] = 5
    assert (array[1], array[2], array[3], array[20], array[21]) == (2, 3, 4, 7, 5)
    with pytest.raises(copyless.UnnamedError, match="needs a name"):
        ray.put(copyless.zeros(10))
