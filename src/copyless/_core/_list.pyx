# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of list.h: Python values in and out of slots.

The public class and its documentation are in `copyless.shared_memory`.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from copyless._core._check cimport check, fail, new_wait, served, Wait
from copyless._core._store cimport the_store
from copyless._core.c_library cimport (
    CL_AGAIN, CL_FOREVER, CL_FULL, CL_OK, CL_STALE, cl_last_error, cl_list, cl_list_begin, cl_list_bytes, cl_list_check, cl_list_get, cl_list_set,
    cl_store, cl_value,
)

from copyless.errors import ClosedError, CorruptSegmentError, ForeignHostError

cdef enum:
    NONE = 0  # so that new memory means None
    FALSE = 1
    TRUE = 2
    INT = 3
    FLOAT = 4
    STR = 5
    BYTES = 6
    SHORT = 512  # bytes up to which a value has the usual length


def check_value(value):
    """Raise the error that storing a value would raise."""
    cdef cl_value v
    describe(value, &v)


def room_for(value):
    """Bytes of each side of the slot for a value: as many as in the standard library, and never fewer than the value needs."""
    cdef uint64_t n
    if isinstance(value, str):
        n = len(value.encode())
    elif isinstance(value, bytes):
        n = len(value)
    else:
        return 8
    return max((n + 7) // 8, len(value) // 8 + 1) * 8


def bytes_for(list rooms):
    """Bytes of a list whose slots have this room."""
    cdef uint64_t *numbers = numbers_of(rooms)
    cdef uint64_t n = cl_list_bytes(len(rooms), numbers)
    free(numbers)
    return n


cdef uint64_t *numbers_of(list rooms) except NULL:
    cdef uint64_t *numbers = <uint64_t *>malloc(8 * (len(rooms) + 1))
    if numbers == NULL:
        raise MemoryError
    for i, room in enumerate(rooms):
        numbers[i] = room
    return numbers


cdef int64_t integer(value) except? -1:
    try:
        return value
    except OverflowError:
        raise OverflowError(f"a ShareableList holds signed 64-bit integers, not {repr(value)[:60]}") from None


cdef object describe(value, cl_value *out):
    """Fill in the value to write. Returns the object that has its bytes, or None."""
    cdef double real
    out.word = out.length = 0
    if type(value) is int:
        out.kind, out.word = INT, <uint64_t>integer(value)
    elif value is None:
        out.kind = NONE
    elif value is True or value is False:
        out.kind = TRUE if value else FALSE
    elif isinstance(value, float):
        real = value
        out.kind = FLOAT
        memcpy(&out.word, &real, 8)
    elif isinstance(value, str):
        value = value.encode()
        out.kind, out.length = STR, len(value)
        return value
    elif isinstance(value, bytes):
        out.kind, out.length = BYTES, len(value)
        return bytes(value)
    elif hasattr(value, "__index__"):
        out.kind, out.word = INT, <uint64_t>integer(value.__index__())
    else:
        raise TypeError(f"a ShareableList holds int, float, bool, str, bytes and None, not {type(value).__name__}: "
                        f"{repr(value)[:60]}")
    return None


cdef class _Slots:
    cdef Py_buffer view
    cdef cl_list *list
    cdef cl_store *store  # its locks name owners of this store
    cdef uint64_t capacity
    cdef Py_ssize_t n
    cdef readonly object shm
    cdef object __weakref__
    cdef bint closed

    def __cinit__(self, *args, **kwargs):
        self.list = NULL

    def __dealloc__(self):
        if self.list != NULL:
            PyBuffer_Release(&self.view)

    def _begin(self, mapping, list rooms, list items):
        """Lay out and fill a new list over zeros."""
        cdef uint64_t *numbers = numbers_of(rooms)
        self.hold(mapping)
        cl_list_begin(self.list, len(rooms), numbers, self.store.registry_id)
        free(numbers)
        self.n = len(rooms)
        for at, item in enumerate(items):
            self.write(at, item)

    def _stand(self, shm):
        """Use an existing list."""
        cdef int rc
        cdef uint64_t n = 0
        self.hold(shm._mapping)
        self._own(shm)
        rc = cl_list_check(self.list, self.capacity, self.store.registry_id, &n)
        while rc == CL_STALE and self.store.older != NULL and self.store.older.open:
            self.store = self.store.older  # the list may have been made before the directory was removed
            rc = cl_list_check(self.list, self.capacity, self.store.registry_id, &n)
        if rc != CL_OK:
            why = (<bytes>cl_last_error().what).decode()
            if rc == CL_STALE:
                raise ForeignHostError(f"the ShareableList {shm.name!r} cannot be used here: {why} (COPYLESS_DIR)")
            raise CorruptSegmentError(f"{shm.name!r} does not hold a copyless.ShareableList: {why}. A list of "
                                      "multiprocessing.shared_memory.ShareableList has another layout: make it "
                                      "with copyless too")
        self.n = <Py_ssize_t>n

    def _close(self):
        """Called when its memory is closed."""
        self.closed = True

    def _own(self, shm):
        self.shm = shm

    cdef int hold(self, mapping) except -1:
        PyObject_GetBuffer(mapping, &self.view, PyBUF_SIMPLE | (0 if mapping.readonly else PyBUF_WRITABLE))
        self.list = <cl_list *>self.view.buf
        self.store = the_store()
        self.capacity = self.view.len
        return 0

    cdef Py_ssize_t index_of(self, position) except -1:
        cdef Py_ssize_t at
        if self.list == NULL or self.closed:
            raise ClosedError("this ShareableList is closed")
        if type(position) is not int and not hasattr(position, "__index__"):
            raise TypeError(f"an index of a ShareableList must be an integer, not {type(position).__name__}")
        try:
            at = position
        except OverflowError:
            raise IndexError("index out of range") from None
        if at < 0:
            at += self.n
        if at < 0 or at >= self.n:
            raise IndexError("index out of range")
        return at

    cdef object read(self, Py_ssize_t at, bint only_kind):
        cdef uint8_t small[SHORT]
        cdef uint8_t *room = small
        cdef uint64_t size = 0 if only_kind else SHORT
        cdef cl_value v
        cdef double real
        cdef Wait wait = new_wait()
        cdef int rc
        held = None
        while True:
            rc = cl_list_get(self.store, self.list, self.capacity, self.n, at, &v, room, size, 0)
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_list_get(self.store, self.list, self.capacity, self.n, at, &v, room, size, CL_FOREVER)
                rc = served(&wait, rc, CL_FOREVER)
            if rc != CL_FULL or only_kind:
                break
            size = v.length
            held = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
            room = <uint8_t *>PyBytes_AS_STRING(held)
        if rc != CL_OK and rc != CL_FULL:
            fail(rc)
        if v.kind > BYTES:
            raise CorruptSegmentError(f"item {at} of the list has an unknown kind ({v.kind})")
        if only_kind:
            return v.kind
        if v.kind == INT:
            return <int64_t>v.word
        if v.kind == FLOAT:
            memcpy(&real, &v.word, 8)
            return real
        if v.kind == STR:
            try:
                return PyUnicode_DecodeUTF8(<char *>room, <Py_ssize_t>v.length, NULL)
            except UnicodeDecodeError as error:
                raise CorruptSegmentError(f"item {at} of the list is not valid text: {error}") from None
        if v.kind == BYTES:
            return held if held is not None and len(held) == v.length else PyBytes_FromStringAndSize(<char *>room, <Py_ssize_t>v.length)
        if v.kind == NONE:
            return None
        return v.kind == TRUE

    def __getitem__(self, position):
        return self.read(self.index_of(position), False)

    def __setitem__(self, position, value):
        self.write(self.index_of(position), value)

    cdef int write(self, Py_ssize_t at, value) except -1:
        cdef cl_value v
        cdef const void *source = NULL
        cdef uint64_t room
        cdef Wait wait = new_wait()
        cdef int rc
        held = describe(value, &v)
        if self.view.readonly:
            raise TypeError("this ShareableList is read-only, because its memory was attached for reading")
        if held is not None:
            source = PyBytes_AS_STRING(held)
        room = self.list.slots[at].room
        if v.length > room:
            raise ValueError(f"bytes/str item exceeds available storage: {v.length} bytes, and item {at} has room for {room}")
        rc = cl_list_set(self.store, self.list, self.capacity, self.n, at, &v, source, 0)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_list_set(self.store, self.list, self.capacity, self.n, at, &v, source, CL_FOREVER)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)
        return 0

    def __len__(self):
        return self.n

    def _kind_and_room(self, position):
        """('none', 'bool', 'int', 'float', 'str' or 'bytes', room in bytes)."""
        at = self.index_of(position)
        return ("none", "bool", "bool", "int", "float", "str", "bytes")[self.read(at, True)], self.list.slots[at].room
