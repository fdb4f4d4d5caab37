"""CPython's own tests run on our modules, in the parent and in every child."""

import json
import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SUITE = os.path.join(HERE, "conformance", "cpython_suite.py")
# If the interpreter lacks its test package, `make test` has put one here.
FETCHED = os.path.join(sys.prefix, "suite")

# Tests that cannot pass, each with the reason.
DEVIATIONS = {
    # No feeder thread exists whose errors could be caught or printed: put() pickles, and raises in the caller.
    # test_queues.py::test_what_cannot_be_pickled_raises_in_put_and_leaves_nothing checks that.
    "test_unpickleable_result": "pins that a lambda cannot be returned; ours crosses by value",
    "test_queue_feeder_donot_stop_onexc": "pins that put() of something unpicklable does not raise",
    "test_queue_feeder_on_queue_feeder_error": "pins the feeder's private hook",
    # It expects the text that the standard library's tracker prints. We have no tracker and print nothing.
    # test_shared_memory.py::test_a_killed_creators_block_vanishes_and_nothing_is_printed checks that the block is
    # removed.
    "test_shared_memory_cleaned_after_process_termination": "pins the tracker's message",
    # Of Python 3.14. Ours says which process holds the lock: test_synchronize.py::test_a_lock_says_who_holds_it.
    "test_repr_lock": "pins <Lock(owner=...)>",
    "test_repr_rlock": "pins <RLock(...)>",
}


# Tests of process executors.
FUTURES_DEVIATIONS = {
    "test_broken_process_pool_traceback": "would wait for ever: pins that one killed worker breaks the pool",
    "test_failed_worker_replacement_breaks_pool": "pins _executor_manager_thread",
    "test_force_shutdown_during_max_tasks_worker_exit": "pins _executor_manager_thread",
    "test_gc_during_max_tasks_worker_exit_gh152967": "pins _executor_manager_thread",
    "test_shutdown_no_wait_max_tasks_gh119592": "pins _executor_manager_thread",
    "test_shutdown_gh_132969_case_1": "pins _executor_manager_thread",
    "test_shutdown_gh_132969_case_2": "pins _executor_manager_thread",
    "test_force_shutdown_workers_invalid_op": "pins _force_shutdown",
    "test_terminate_workers": "pins _force_shutdown (test_pool.py has the method itself)",
    "test_kill_workers": "pins _force_shutdown",
    "test_killed_child": "pins that one killed worker breaks the pool: ours fails its task alone (test_pool.py)",
    "test_del_shutdown": "pins _executor_manager_thread",
    "test_shutdown_deadlock_pickle": "pins _executor_manager_thread",
    "test_shutdown_no_wait": "pins _call_queue",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "pins _ExecutorManagerThread and _ThreadWakeup",
    # Their tasks contain a semaphore of the standard library, which cannot be pickled. Under spawn and forkserver no
    # worker is started for a task that cannot be sent. test_pool.py::test_workers_start_as_they_are_needed checks the
    # counts.
    "test_processes_terminate": "its tasks cannot be pickled",
    "test_saturation": "its tasks cannot be pickled",
}
FUTURES_REQUIRED = {
    "test_initializer", "test_run_after_shutdown", "test_interpreter_shutdown",
    "test_submit_after_interpreter_shutdown",
    "test_hang_issue12364", "test_cancel_futures", "test_context_manager_shutdown", "test_first_completed",
    "test_all_completed",
    "test_first_exception", "test_no_timeout", "test_map", "test_map_exception", "test_map_timeout",
    "test_no_stale_references", "test_free_reference", "test_map_chunksize", "test_traceback",
    "test_ressources_gced_in_workers",
    "test_crash_during_func_exec_on_worker", "test_exit_during_result_unpickle_in_result_handler",
    "test_shutdown_deadlock",
}  # fmt: skip


# Tests that must have passed, so that none is skipped unnoticed: test names, or how many of each group.
REQUIRED = {
    "shm": {"test_shared_memory_basics", "test_shared_memory_across_processes", "test_shared_memory_recreate",
            "test_shared_memory_pickle_unpickle", "test_shared_memory_pickle_unpickle_dead_object",
            "test_shared_memory_ShareableList_basics", "test_shared_memory_ShareableList_pickling",
            "test_shared_memory_ShareableList_pickling_dead_object", "test_shared_memory_SharedMemoryManager_basics",
            "test_shared_memory_SharedMemoryManager_reuses_resource_tracker",
            "test_shared_memory_SharedMemoryServer_ignores_sigint"},
    "sharedctypes": {"test_value", "test_rawvalue", "test_getobj_getlock", "test_array", "test_rawarray", "test_array_from_size",  # noqa: E501
                     "test_getobj_getlock_obj", "test_sharedctypes", "test_synchronize", "test_copy"},
    "queue": {"test_put", "test_get", "test_fork", "test_qsize", "test_task_done", "test_no_import_lock_contention",
              "test_timeout", "test_empty", "test_closed", "test_closed_queue_put_get_exceptions"},
    "sync": {"test_lock", "test_rlock", "test_lock_context", "test_semaphore", "test_bounded_semaphore", "test_timeout",
             "test_notify", "test_notify_all", "test_notify_n", "test_waitfor", "test_waitfor_timeout",
             "test_wait_result",
             "test_event", "test_barrier", "test_barrier_10", "test_wait_return", "test_action", "test_abort",
             "test_reset",
             "test_abort_and_reset", "test_default_timeout", "test_single_thread", "test_thousand"},
    "pool": {"test_apply", "test_map", "test_starmap", "test_async", "test_async_timeout", "test_imap", "test_imap_unordered",  # noqa: E501
             "test_map_chunksize", "test_map_no_failfast", "test_map_unplicklable", "test_terminate", "test_traceback",
             "test_release_task_refs", "test_resource_warning", "test_pool_worker_lifetime",
             "test_pool_worker_lifetime_early_close", "test_async_error_callback", "test_manager_initializer",
             "test_pool_initializer"},
    "manager": {"test_list", "test_list_iter", "test_list_proxy_in_list", "test_dict", "test_dict_iter", "test_dict_proxy_nested",  # noqa: E501
                "test_nested_queue", "test_namespace", "test_event", "test_lock", "test_rlock", "test_semaphore",
                "test_bounded_semaphore", "test_condition", "test_barrier", "test_pool", "test_queue",
                "test_joinable_queue",
                "test_value", "test_array"},
}  # fmt: skip


TYPES = {"pool": "processes,manager", "manager": "processes,manager"}


@pytest.mark.parametrize("start", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("group", REQUIRED)
def test_suite(group, start, tmp_path):
    report = str(tmp_path / "report.json")
    env = dict(os.environ)
    if os.path.isdir(FETCHED):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [FETCHED, env.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, SUITE, "--module", "copyless", "--classes", group, "--start", start, "--types", TYPES.get(group, "processes"),  # noqa: E501
         "--json", report],
        capture_output=True, text=True, timeout=280, env=env,
    )  # fmt: skip
    assert os.path.exists(report), done.stdout + done.stderr
    with open(report) as f:
        results = [(test.rpartition(".")[2], result) for test, result in json.load(f)["status"].items()]
    passed = {test for test, result in results if result == "pass"}  # as at least one of the types
    failed = {test for test, result in results if result == "fail"}
    assert failed | {test for test, _ in results if test not in passed} <= set(DEVIATIONS), done.stdout
    assert REQUIRED[group] <= passed


@pytest.mark.parametrize("start", ["spawn", "fork", "forkserver"])
def test_futures_suite(start, tmp_path):
    report = str(tmp_path / "report.json")
    env = dict(os.environ)
    if os.path.isdir(FETCHED):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [FETCHED, env.get("PYTHONPATH")]))
    suite = os.path.join(os.path.dirname(SUITE), "futures_suite.py")
    done = subprocess.run(
        [sys.executable, suite, "--start", start, "--json", report],
        capture_output=True,
        text=True,
        timeout=280,
        env=env,
    )
    assert os.path.exists(report), done.stdout + done.stderr
    with open(report) as f:
        results = [(test.rpartition(".")[2], result) for test, result in json.load(f)["status"].items()]
    assert {test for test, result in results if result == "fail"} <= set(FUTURES_DEVIATIONS), done.stdout
    assert {test for test, result in results if result == "pass"} >= FUTURES_REQUIRED


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_the_class_is_ours_in_a_child_too(start, tmp_path):
    script = tmp_path / "asks.py"
    script.write_text(
        "import sys, multiprocessing\n"
        f"sys.path.insert(0, {os.path.dirname(SUITE)!r})\n"
        "import cpython_suite\n"
        "def ask(queue):\n"
        "    import cpython_suite, json, os\n"
        "    T, _ = cpython_suite.setup(json.loads(os.environ[cpython_suite.ENV]))\n"
        "    queue.put(T.shared_memory.SharedMemory.__module__)\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({start!r})\n"
        "    queue = context.SimpleQueue()\n"
        "    child = context.Process(target=ask, args=(queue,))\n"
        "    child.start(); print(queue.get()); child.join()\n"
    )
    cfg = json.dumps({"module": "copyless", "start": start, "strict": False, "path": [os.path.dirname(SUITE)]})
    env = {**os.environ, "CPYTHON_SUITE_CFG": cfg}
    if os.path.isdir(FETCHED):
        env["PYTHONPATH"] = FETCHED
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, env=env)
    assert done.stdout.strip().splitlines()[-1:] == ["copyless.shared_memory"], done.stdout + done.stderr
