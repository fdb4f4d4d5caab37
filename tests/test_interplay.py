"""copyless together with joblib, asyncio, PyTorch and Arrow's C interfaces."""

import asyncio
import importlib.util
import os
import signal

import joblib
import numpy as np
import pyarrow as pa
import pytest

import copyless
import copyless.joblib  # registers the backend

# ---- joblib


def mean(array, row):
    return os.getpid(), float(array[row].mean()), array.flags.writeable, copyless.is_shared(array)


def die_on(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_joblib_gives_results_in_order():
    squares = joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(lambda x: x * x)(i) for i in range(100))
    assert squares == [i * i for i in range(100)]


def test_a_large_argument_is_copied_once_and_arrives_read_only():
    array = np.arange(1_000_000.0).reshape(100, -1)
    answers = joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(mean)(array, i) for i in range(100))
    assert [value for _, value, _, _ in answers] == [float(row.mean()) for row in array]
    assert {(writeable, shared) for *_, writeable, shared in answers} == {(False, True)}
    assert os.getpid() not in {pid for pid, *_ in answers}


def test_a_shared_array_is_the_same_memory():
    array = copyless.zeros((10, 1000))

    def fill(part, value):
        part[:] = value

    joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(fill)(array[i], i) for i in range(10))
    assert (array == np.arange(10)[:, None]).all()


def test_parameters_by_parallel_config_and_as_a_generator():
    with joblib.parallel_config("copyless", n_jobs=2, max_nbytes="1K"):
        answers = joblib.Parallel(return_as="generator")(joblib.delayed(mean)(np.ones((1, 1000)), 0) for _ in range(5))
        assert [(value, shared) for _, value, _, shared in answers] == [(1.0, True)] * 5


def test_joblib_hears_of_errors_and_killed_workers_and_goes_on():
    with joblib.Parallel(n_jobs=2, backend="copyless") as parallel:
        with pytest.raises(ZeroDivisionError):
            parallel(joblib.delayed(divmod)(1, i) for i in range(5))
        with pytest.raises(copyless.WorkerDiedError):
            parallel(joblib.delayed(die_on)(i) for i in range(6))
        assert parallel(joblib.delayed(abs)(-i) for i in range(5)) == [0, 1, 2, 3, 4]


def test_one_job_runs_here():
    assert (
        joblib.Parallel(n_jobs=1, backend="copyless")(joblib.delayed(os.getpid)() for _ in range(2))
        == [os.getpid()] * 2
    )


# ---- asyncio


def test_the_executor_serves_an_event_loop():
    array = copyless.array(np.arange(1000.0))

    async def main():
        loop = asyncio.get_running_loop()
        with copyless.ProcessPoolExecutor(2) as executor:
            return await asyncio.gather(*(loop.run_in_executor(executor, np.sum, array[i::4]) for i in range(4)))

    assert sum(asyncio.run(main())) == array.sum()


# ---- DLPack, PyTorch


def test_dlpack_stands_on_the_same_memory():
    array = copyless.zeros(8, "f4")
    other = np.from_dlpack(array)
    other[0] = 5
    assert array[0] == 5


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_torch_tensors_stand_on_the_same_memory_and_outlive_the_array():
    import torch

    array = copyless.zeros((4, 5), "f4")
    for tensor in (torch.from_dlpack(array), torch.asarray(array), torch.from_numpy(array)):
        tensor[0, 0] += 1
    assert array[0, 0] == 3
    tensor = torch.from_dlpack(copyless.ones(1000, "f4"))
    copyless.zeros(1000, "f4")
    assert tensor.sum() == 1000
    shared = copyless.share({"weights": torch.ones(1000)})
    assert copyless.is_shared(shared["weights"])
    assert type(shared["weights"]) is torch.Tensor
    queue = copyless.Queue()
    queue.put(shared)
    arrived = queue.get()["weights"]
    arrived[0] = 7
    assert shared["weights"][0] == 7


# ---- Arrow


def test_arrow_arrays_over_shared_arrays_cross_by_handle():
    array = copyless.array(np.arange(100_000))
    over = pa.array(array)  # pyarrow uses NumPy's memory without a copy
    assert copyless.is_shared(over)
    queue = copyless.Queue()
    queue.put(over)
    arrived = queue.get()
    array[0] = -1
    assert arrived[0].as_py() == -1


def test_the_c_data_interface_carries_shared_memory():
    """Every library that takes Arrow's capsules (polars, DuckDB, pandas) uses the shared memory of the table."""
    import polars as pl

    table = copyless.share(pa.table({"a": np.arange(10_000)}))
    frame = pl.DataFrame(table)
    by_stream = pa.RecordBatchReader.from_stream(table).read_all()
    assert copyless.is_shared(by_stream)
    assert copyless.is_shared(frame)
    back = pa.array(by_stream.column("a").chunk(0))
    assert back.buffers()[1].address == table.column("a").chunk(0).buffers()[1].address
