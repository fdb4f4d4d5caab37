"""An existing multiprocessing program in which one line was changed: ``import multiprocessing as mp``.

It uses what such programs use: processes, a pool with an initializer, queues, a pipe, a lock, shared values and arrays,
an event, a barrier, a manager. `--stdlib` runs it with the original line. Both print the same.
"""

import sys

if "--stdlib" in sys.argv:
    import multiprocessing as mp
else:
    import copyless as mp


def square(x):
    return x * x


def remember(shared):
    global counter
    counter = shared


def count(_):
    with counter.get_lock():
        counter.value += 1


def work(jobs, done, total, lock):
    for job in iter(jobs.get, None):
        with lock:
            total.value += job
        done.put((mp.current_process().name, job))


def meet(barrier, event, places, i):
    event.wait()
    barrier.wait()
    places[i] = i + 1


def talk(connection):
    connection.send([connection.recv(), "and back"])
    connection.close()


def note(shared, names, i):
    shared[f"process {i}"] = i
    names.append(i)


def main(method="spawn"):
    context = mp.get_context(method)
    value = context.Value("i", 0)
    with context.Pool(2, initializer=remember, initargs=(value,)) as pool:
        print("squares", pool.map(square, range(10)))
        pool.map(count, range(100))
        print("applied", pool.apply_async(square, (12,)).get(timeout=60))
        print("unordered", sorted(pool.imap_unordered(square, range(5))))
    print("counted", value.value)

    jobs, done, lock, total = context.Queue(), context.SimpleQueue(), context.Lock(), context.Value("q", 0, lock=False)
    workers = [context.Process(target=work, args=(jobs, done, total, lock), name=f"worker {i}") for i in range(2)]
    for worker in workers:
        worker.start()
    for job in range(50):
        jobs.put(job)
    answers = sorted(done.get()[1] for _ in range(50))
    for _ in workers:
        jobs.put(None)
    for worker in workers:
        worker.join()
    print("queue", answers == list(range(50)), "total", total.value, "exit", [worker.exitcode for worker in workers])

    barrier, event, places = context.Barrier(3), context.Event(), context.Array("i", 3)
    party = [context.Process(target=meet, args=(barrier, event, places, i)) for i in range(3)]
    for process in party:
        process.start()
    event.set()
    for process in party:
        process.join()
    print("met", places[:], "children", mp.active_children())

    here, there = context.Pipe()
    talker = context.Process(target=talk, args=(there,))
    talker.start()
    here.send("there")
    print("pipe", here.recv())
    talker.join()

    with context.Manager() as manager:
        shared, names = manager.dict(), manager.list()
        party = [context.Process(target=note, args=(shared, names, i)) for i in range(3)]
        for process in party:
            process.start()
        for process in party:
            process.join()
        print("manager", sorted(shared.items()), sorted(names))


if __name__ == "__main__":
    main()
