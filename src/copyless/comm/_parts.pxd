cpdef object matched(comm, source, tag, status)
