# cython: language_level=3, freethreading_compatible=True
"""`Memory`: one contiguous range of bytes, shared or private. Its public module is `copyless.memory`."""
cimport cython
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.slice cimport PySlice_GetIndicesEx
from libc.stdint cimport intptr_t, uint8_t, uintptr_t
from libc.string cimport memmove, memset


cdef class _Export:
    """Keeps the buffer of another object until the last view of the `Memory` is deleted, even after `Memory.release()`."""
    cdef Py_buffer view
    cdef bint held

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef _Export export(object obj, bint writable):
    cdef _Export e = _Export.__new__(_Export)
    if not PyObject_CheckBuffer(obj) and hasattr(obj, "__dlpack__"):
        import numpy
        obj = numpy.from_dlpack(obj)
    try:
        PyObject_GetBuffer(obj, &e.view, PyBUF_ANY_CONTIGUOUS | (PyBUF_WRITABLE if writable else PyBUF_SIMPLE))
    except ValueError as error:  # NumPy raises this for it
        raise BufferError(str(error)) from None
    e.held = True
    return e


@cython.final
cdef class Memory:
    """Memory(buf)

    The bytes of any buffer; nothing is copied.

    Mirrors ``mpi4py.MPI.buffer`` (``MPI.memory``); MPI is not needed, and mpi4py accepts it as a message buffer.
    Memory from `allocate` and `Alloc_mem` is shared memory and is sent to other processes as a handle.

    Parameters
    ----------
    buf : buffer-like, optional
        Any C- or Fortran-contiguous buffer, or an object with ``__dlpack__`` on the CPU. Default: no bytes.

    Raises
    ------
    TypeError
        If `buf` is not a buffer.
    BufferError
        If it is not contiguous.

    Notes
    -----
    Views of it (``memoryview``, ``numpy.frombuffer``) keep the bytes valid after `release`.

    Examples
    --------
    >>> from copyless.memory import Memory
    >>> m = Memory(bytearray(b"abcdef"))
    >>> m[0], len(m), m[1:3].tobytes()
    (97, 6, b'bc')
    >>> m[1:3] = b"XY"
    >>> m.obj
    bytearray(b'aXYdef')
    """
    cdef _Export kept
    cdef object owner
    cdef uint8_t *base
    cdef Py_ssize_t length
    cdef bint is_readonly
    cdef readonly bint _from_alloc_mem

    def __cinit__(self, *args):
        self.base, self.length, self.is_readonly = NULL, 0, False
        if args:  # as in mpi4py, further arguments are accepted and not used
            self.take(args[0], export(args[0], False), False)

    cdef void take(self, object owner, _Export kept, bint readonly):
        self.owner = owner
        self.kept = kept
        self.base = <uint8_t *>kept.view.buf
        self.length = kept.view.len
        self.is_readonly = readonly or kept.view.readonly

    cdef Memory part(self, object owner, Py_ssize_t start, Py_ssize_t n, bint readonly):
        cdef Memory m = Memory.__new__(Memory)
        m.owner = owner
        m.kept = self.kept
        m.base = self.base + start
        m.length = n
        m.is_readonly = readonly or self.is_readonly
        return m

    @staticmethod
    def allocate(nbytes, bint clear=False):
        """allocate(nbytes: int, clear: bool = False) -> Memory

        New shared memory of `nbytes` bytes, set to zero if `clear`.

        Raises
        ------
        ValueError
            For a negative size.
        OutOfSharedMemory
            If there is no room.

        Notes
        -----
        Costs no system call if a free block of the size can be reused. Without `clear` the bytes are arbitrary.

        Examples
        --------
        >>> from copyless.memory import Memory
        >>> Memory.allocate(4, clear=True).tobytes()
        b'\\x00\\x00\\x00\\x00'
        """
        cdef Py_ssize_t n
        try:
            n = int(nbytes) if isinstance(nbytes, float) else nbytes
        except TypeError:
            raise TypeError(f"an integer is required, not {type(nbytes).__name__!r}") from None
        if n < 0:
            raise ValueError("expecting non-negative size")
        from copyless._storage.store import allocate as allocate_block
        block = allocate_block(n)
        if clear and block.recycled:
            block.clear()
        cdef Memory m = Memory.__new__(Memory)
        m.take(block, export(block, True), False)
        return m

    @staticmethod
    def frombuffer(obj, bint readonly=False):
        """frombuffer(obj, readonly: bool = False) -> Memory

        The bytes of a buffer-like object; nothing is copied.

        Raises
        ------
        BufferError
            If `obj` is read-only and `readonly` is false.

        Examples
        --------
        >>> from copyless.memory import Memory
        >>> Memory.frombuffer(b"abc", readonly=True).readonly
        True
        """
        cdef Memory m = Memory.__new__(Memory)
        m.take(obj, export(obj, not readonly), readonly)
        return m

    @staticmethod
    def fromaddress(address, nbytes, bint readonly=False):
        """fromaddress(address: int, nbytes: int, readonly: bool = False) -> Memory

        `nbytes` bytes at an address of this process. The caller must keep the memory valid.

        Raises
        ------
        ValueError
            For a negative size, or the address 0 with a size above 0.

        Examples
        --------
        >>> from copyless.memory import Memory
        >>> m = Memory(bytearray(b"abc"))
        >>> Memory.fromaddress(m.address, 2).tobytes()
        b'ab'
        """
        cdef object where = address, size = nbytes
        cdef Memory m = Memory.__new__(Memory)
        if size < 0:
            raise ValueError("expecting non-negative buffer length")
        if where == 0 and size > 0:
            raise ValueError("expecting non-NULL address")
        m.base = <uint8_t *>(<uintptr_t>where if where >= 0 else <uintptr_t><intptr_t>where)
        m.length = size
        m.is_readonly = readonly
        return m

    @property
    def address(self):
        """Address of the first byte in this process (int); 0 if there are no bytes."""
        return <uintptr_t>self.base

    @property
    def obj(self):
        """The object that the bytes belong to, or None."""
        return self.owner

    @property
    def nbytes(self):
        """Size in bytes."""
        return self.length

    @property
    def readonly(self):
        """Whether the memory is read-only."""
        return self.is_readonly

    @property
    def format(self):
        """Always ``'B'``: unsigned bytes."""
        return "B"

    @property
    def itemsize(self):
        """Always 1 (byte)."""
        return 1

    def cast(self, format, shape=None):
        """cast(format: str, shape: Sequence[int] = ...) -> memoryview

        A memoryview with another format and shape, as `memoryview.cast`; nothing is copied.

        Examples
        --------
        >>> from copyless.memory import Memory
        >>> Memory(bytearray(8)).cast("i").tolist()
        [0, 0]
        """
        view = memoryview(self)
        return view.cast(format) if shape is None else view.cast(format, shape)

    def tobytes(self, order=None):
        """A copy as bytes. `order` is accepted as in memoryview and changes nothing."""
        return PyBytes_FromStringAndSize(<char *>self.base, self.length)

    def toreadonly(self):
        """The same bytes, read-only."""
        return self.part(self.owner if self.owner is not None else None, 0, self.length, True)

    def release(self):
        """Release the bytes; the object is empty then. Existing views keep the bytes valid until they are deleted."""
        self.owner = None
        self.kept = None
        self.base, self.length, self.is_readonly = NULL, 0, False
        self._from_alloc_mem = False

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self.kept if self.kept is not None else self, self.base, self.length,
                          self.is_readonly, flags)

    def __len__(self):
        return self.length

    def __getitem__(self, item):
        cdef Py_ssize_t start, stop, step, n
        if isinstance(item, slice):
            PySlice_GetIndicesEx(item, self.length, &start, &stop, &step, &n)
            if step != 1:
                raise IndexError("slice with step not supported")
            return self.part(self, start, n, False)
        return self.base[self.at(item)]

    def __setitem__(self, item, value):
        cdef Py_ssize_t start, stop, step, n
        cdef uint8_t byte
        cdef _Export source
        if self.is_readonly:
            raise TypeError("buffer is read-only")
        if not isinstance(item, slice):
            start = self.at(item)
            byte = value
            self.base[start] = byte
            return
        PySlice_GetIndicesEx(item, self.length, &start, &stop, &step, &n)
        if step != 1:
            raise IndexError("slice with step not supported")
        if hasattr(value, "__index__") and not PyObject_CheckBuffer(value):
            byte = value
            memset(self.base + start, byte, n)
            return
        source = export(value, False)
        if source.view.len != n:
            raise ValueError("slice length does not match buffer")
        memmove(self.base + start, source.view.buf, n)

    cdef Py_ssize_t at(self, item) except -1:
        cdef Py_ssize_t i
        if not hasattr(type(item), "__index__"):
            raise TypeError("index must be integer or slice")
        i = item
        if i < 0:
            i += self.length
        if not 0 <= i < self.length:
            raise IndexError("index out of range")
        return i

    def __repr__(self):
        kind = ", read-only" if self.is_readonly else ""
        return f"<Memory of {self.length} bytes at {<uintptr_t>self.base:#x}{kind}>"

    def __reduce__(self):
        # The plain pickle module stores the bytes, so that a file or another host never receives a handle.
        from copyless._loaders import bytes_in_memory
        return bytes_in_memory, (self.tobytes(), self.is_readonly)

    def __deepcopy__(self, memo):
        return _from_bytes(self.tobytes(), self.is_readonly)

    def _mark_alloc_mem(self):
        self._from_alloc_mem = True
        return self


def _from_bytes(data, readonly=False):
    m = Memory.allocate(len(data))
    m[:] = data
    return m.toreadonly() if readonly else m


def _from_block(block, Py_ssize_t offset, Py_ssize_t nbytes, bint readonly):
    """A range of a block that arrived as a handle."""
    cdef Memory whole = Memory.__new__(Memory)
    whole.take(block, export(block, True), False)
    if offset < 0 or nbytes < 0 or offset > whole.length or nbytes > whole.length - offset:
        raise ValueError(f"{nbytes} bytes at {offset} lie outside a block of {whole.length} bytes")
    return whole.part(block, offset, nbytes, readonly)
