/* Small built-in values as pickles of protocol 5, without the pickler: None, bool, int, float, str, bytes, and tuples,
 * lists and dicts of them. What is written is a valid pickle, and any pickle may be read: what is not made of these
 * opcodes is left to the pickle module, as is every value with a list or dict in it twice (its identity would be lost).
 *
 * Where it is asked for, arrays of plain numbers too, as calls of copyless._loaders.array_over: large ones as buffers
 * beside the pickle. Those are left to the pickle module to read.
 *
 * A small tuple takes a fifth of the time that pickle.dumps needs, an array a tenth. No Python code runs in here, and
 * nothing that the garbage collector might look at is made while it walks through an object. */
#ifndef CL_PLAIN_H
#define CL_PLAIN_H

#include <Python.h>
#include <stdint.h>
#include <string.h>

#define PLAIN_DEPTH 8
#define PLAIN_CONTAINERS 16
#define PLAIN_STACK 192

#define PLAIN_ARRAYS 256
#define PLAIN_NUMBERS "?bBhHiIlLqQefd" /* formats of the buffer protocol */
#define PLAIN_CALLED "\x8c\x11" "copyless._loaders" "\x8c\x0a" "array_over" "\x93\x94"

typedef struct plain_arrays {
    PyTypeObject *type; /* numpy.ndarray */
    Py_ssize_t beside; /* bytes from which a buffer goes beside the pickle */
    int (*is_shared)(const void *data, uint64_t nbytes); /* those are for the pickle module */
    PyObject *seen[PLAIN_ARRAYS]; /* references of ours */
    int n;
    uint8_t is_beside[PLAIN_ARRAYS];
} plain_arrays;

typedef struct plain_writer {
    uint8_t *p, *end;
    PyObject *seen[PLAIN_CONTAINERS]; /* lists and dicts */
    int n;
    plain_arrays *arrays; /* NULL: none */
} plain_writer;

static int plain_room(plain_writer *w, size_t n)
{
    return (size_t)(w->end - w->p) >= n;
}

static int plain_long(plain_writer *w, PyObject *o)
{
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
    if (overflow || !plain_room(w, 12)) {
        return 0;
    }
    if (v >= 0 && v < 256) {
        *w->p++ = 'K';
        *w->p++ = (uint8_t)v;
    } else if (v >= INT32_MIN && v <= INT32_MAX) {
        *w->p++ = 'J';
        for (int i = 0; i < 4; i++) {
            *w->p++ = (uint8_t)((uint32_t)(int32_t)v >> (8 * i));
        }
    } else {
        *w->p++ = 0x8a; /* LONG1: little-endian, two's complement */
        *w->p++ = 8;
        for (int i = 0; i < 8; i++) {
            *w->p++ = (uint8_t)((uint64_t)v >> (8 * i));
        }
    }
    return 1;
}

static int plain_bytes(plain_writer *w, const char *data, Py_ssize_t n, uint8_t small, uint8_t large)
{
    if (!plain_room(w, (size_t)n + 5)) {
        return 0;
    }
    if (n < 256) {
        *w->p++ = small;
        *w->p++ = (uint8_t)n;
    } else {
        *w->p++ = large;
        for (int i = 0; i < 4; i++) {
            *w->p++ = (uint8_t)((uint32_t)n >> (8 * i));
        }
    }
    memcpy(w->p, data, (size_t)n);
    w->p += n;
    return 1;
}

static int plain_write(plain_writer *w, PyObject *o, int depth);

static int plain_container(plain_writer *w, PyObject *o)
{
    for (int i = 0; i < w->n; i++) {
        if (w->seen[i] == o) {
            return 0;
        }
    }
    if (w->n == PLAIN_CONTAINERS) {
        return 0;
    }
    w->seen[w->n++] = o;
    return 1;
}

static int plain_tuple(plain_writer *w, PyObject *o, int depth)
{
    Py_ssize_t n = PyTuple_GET_SIZE(o);
    if (n > 3) {
        *w->p++ = '(';
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!plain_write(w, PyTuple_GET_ITEM(o, i), depth - 1)) {
            return 0;
        }
    }
    if (!plain_room(w, 2)) {
        return 0;
    }
    *w->p++ = n == 0 ? ')' : n == 1 ? 0x85 : n == 2 ? 0x86 : n == 3 ? 0x87 : 't';
    return 1;
}

/* Whether an array's dtype holds metadata, which its format does not say. The last dtype of each format that has none is
 * kept: most arrays have the very same. */
static int plain_has_metadata(PyObject *o, uint8_t format)
{
    static PyObject *known[128], *dtype_name, *metadata_name;
    if (metadata_name == NULL) {
        dtype_name = PyUnicode_InternFromString("dtype");
        metadata_name = PyUnicode_InternFromString("metadata");
    }
    PyObject *dtype = dtype_name == NULL || metadata_name == NULL ? NULL : PyObject_GetAttr(o, dtype_name);
    if (dtype != NULL && format < 128 && __atomic_load_n(&known[format], __ATOMIC_RELAXED) == dtype) {
        Py_DECREF(dtype);
        return 0;
    }
    PyObject *metadata = dtype == NULL ? NULL : PyObject_GetAttr(dtype, metadata_name);
    int none = metadata == Py_None;
    if (none && format < 128) {
        PyObject *before = __atomic_exchange_n(&known[format], Py_NewRef(dtype), __ATOMIC_ACQ_REL); /* no GIL, maybe */
        Py_XDECREF(before);
    }
    Py_XDECREF(metadata);
    Py_XDECREF(dtype);
    PyErr_Clear();
    return !none;
}

static int plain_array(plain_writer *w, PyObject *o)
{
    plain_arrays *a = w->arrays;
    Py_buffer view;
    for (int i = 0; i < a->n; i++) {
        if (a->seen[i] == o) {
            return 0;
        }
    }
    if (a->n == PLAIN_ARRAYS || PyObject_GetBuffer(o, &view, PyBUF_ND | PyBUF_FORMAT) < 0) {
        PyErr_Clear(); /* its elements do not lie one behind the other, or have no format */
        return 0;
    }
    const char *format = view.format == NULL ? "B" : view.format;
    int good = view.len > 0 && view.ndim <= 32 && format[0] != 0 && format[1] == 0 &&
               strchr(PLAIN_NUMBERS, format[0]) != NULL && !plain_has_metadata(o, (uint8_t)format[0]) &&
               !a->is_shared(view.buf, (uint64_t)view.len);
    int beside = view.len >= a->beside;
    if (good && plain_room(w, sizeof(PLAIN_CALLED) + 20 + 12 * (size_t)view.ndim + (beside ? 0 : (size_t)view.len))) {
        if (a->n == 0) {
            memcpy(w->p, PLAIN_CALLED, sizeof(PLAIN_CALLED) - 1);
            w->p += sizeof(PLAIN_CALLED) - 1;
        } else {
            *w->p++ = 'h'; /* the first thing remembered */
            *w->p++ = 0;
        }
        if (beside) {
            *w->p++ = 0x97; /* the next buffer */
            if (view.readonly) {
                *w->p++ = 0x98;
            }
        } else {
            *w->p++ = 0x96; /* a bytearray */
            for (int i = 0; i < 8; i++) {
                *w->p++ = (uint8_t)((uint64_t)view.len >> (8 * i));
            }
            memcpy(w->p, view.buf, (size_t)view.len);
            w->p += view.len;
        }
        *w->p++ = 0x8c;
        *w->p++ = 1;
        *w->p++ = (uint8_t)format[0];
        if (view.ndim > 3) {
            *w->p++ = '(';
        }
        for (int i = 0; i < view.ndim; i++) {
            *w->p++ = 0x8a;
            *w->p++ = 8;
            for (int k = 0; k < 8; k++) {
                *w->p++ = (uint8_t)((uint64_t)view.shape[i] >> (8 * k));
            }
        }
        *w->p++ = view.ndim == 0 ? ')' : view.ndim == 1 ? 0x85 : view.ndim == 2 ? 0x86 : view.ndim == 3 ? 0x87 : 't';
        *w->p++ = 0x87;
        *w->p++ = 'R';
        a->is_beside[a->n] = (uint8_t)beside;
        a->seen[a->n++] = Py_NewRef(o);
    } else {
        good = 0;
    }
    int writable_small = !beside && view.readonly; /* a bytearray could be written to */
    PyBuffer_Release(&view);
    return good && !writable_small;
}

static int plain_write(plain_writer *w, PyObject *o, int depth)
{
    if (depth == 0 || !plain_room(w, 12)) {
        return 0;
    }
    if (o == Py_None) {
        *w->p++ = 'N';
        return 1;
    }
    if (o == Py_True || o == Py_False) {
        *w->p++ = o == Py_True ? 0x88 : 0x89;
        return 1;
    }
    if (PyLong_CheckExact(o)) {
        return plain_long(w, o);
    }
    if (PyUnicode_CheckExact(o)) {
        Py_ssize_t n;
        const char *text = PyUnicode_AsUTF8AndSize(o, &n);
        if (text == NULL) {
            PyErr_Clear(); /* lone surrogates */
            return 0;
        }
        return plain_bytes(w, text, n, 0x8c, 'X');
    }
    if (PyFloat_CheckExact(o)) {
        double v = PyFloat_AS_DOUBLE(o);
        uint64_t bits;
        memcpy(&bits, &v, 8);
        *w->p++ = 'G';
        for (int i = 0; i < 8; i++) {
            *w->p++ = (uint8_t)(bits >> (56 - 8 * i));
        }
        return 1;
    }
    if (PyTuple_CheckExact(o)) {
        return plain_tuple(w, o, depth);
    }
    if (PyBytes_CheckExact(o)) {
        return plain_bytes(w, PyBytes_AS_STRING(o), PyBytes_GET_SIZE(o), 'C', 'B');
    }
    if (PyList_CheckExact(o)) {
        if (!plain_container(w, o)) {
            return 0;
        }
        *w->p++ = ']';
        *w->p++ = '(';
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(o); i++) {
            if (!plain_write(w, PyList_GET_ITEM(o, i), depth - 1)) {
                return 0;
            }
        }
        if (!plain_room(w, 2)) {
            return 0;
        }
        *w->p++ = 'e';
        return 1;
    }
    if (PyDict_CheckExact(o)) {
        PyObject *key, *value;
        Py_ssize_t at = 0;
        if (!plain_container(w, o)) {
            return 0;
        }
        *w->p++ = '}';
        *w->p++ = '(';
        while (PyDict_Next(o, &at, &key, &value)) {
            if (!plain_write(w, key, depth - 1) || !plain_write(w, value, depth - 1)) {
                return 0;
            }
        }
        if (!plain_room(w, 2)) {
            return 0;
        }
        *w->p++ = 'u';
        return 1;
    }
    if (w->arrays != NULL && Py_TYPE(o) == w->arrays->type) {
        return plain_array(w, o);
    }
    return 0;
}

/* The bytes written, 0 when it is for the pickle module. */
static size_t plain_dump_with(PyObject *o, uint8_t *out, size_t room, plain_arrays *arrays)
{
#ifdef Py_GIL_DISABLED
    (void)o, (void)out, (void)room, (void)arrays;
    return 0; /* another thread might change a list meanwhile */
#else
    plain_writer w = {.p = out, .end = out + room, .arrays = arrays};
    *w.p++ = 0x80;
    *w.p++ = 5;
    if (!plain_write(&w, o, PLAIN_DEPTH) || !plain_room(&w, 1)) {
        return 0;
    }
    *w.p++ = '.';
    return (size_t)(w.p - out);
#endif
}

static size_t plain_dump(PyObject *o, uint8_t *out, size_t room)
{
    return plain_dump_with(o, out, room, NULL);
}

static uint64_t plain_number(const uint8_t *p, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++) {
        v |= (uint64_t)p[i] << (8 * i);
    }
    return v;
}

#ifndef Py_GIL_DISABLED
/* The same few keys come in every message: those met last are at hand, with their hashes. */
#define PLAIN_KEYS 256
#define PLAIN_KEY_LONGEST 32
static PyObject *plain_keys[PLAIN_KEYS];

static PyObject *plain_key(const uint8_t *p, size_t n)
{
    uint32_t hash = 2166136261u;
    if (n == 0 || n > PLAIN_KEY_LONGEST) {
        return PyUnicode_DecodeUTF8((const char *)p, (Py_ssize_t)n, NULL);
    }
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ p[i]) * 16777619u;
    }
    PyObject **known = &plain_keys[(hash ^ hash >> 16) % PLAIN_KEYS], *key = *known;
    if (key != NULL && (size_t)PyUnicode_GET_LENGTH(key) == n && memcmp(PyUnicode_DATA(key), p, n) == 0) {
        return Py_NewRef(key);
    }
    key = PyUnicode_DecodeUTF8((const char *)p, (Py_ssize_t)n, NULL);
    if (key != NULL && PyUnicode_IS_COMPACT_ASCII(key)) { /* its characters are its bytes */
        Py_XSETREF(*known, Py_NewRef(key));
    }
    return key;
}
#else
static PyObject *plain_key(const uint8_t *p, size_t n)
{
    return PyUnicode_DecodeUTF8((const char *)p, (Py_ssize_t)n, NULL);
}
#endif

/* The value, a new reference; NULL without an exception when it is for the pickle module, with one when memory is short. */
static PyObject *plain_load(const uint8_t *p, size_t nbytes)
{
    const uint8_t *end = p + nbytes;
    PyObject *stack[PLAIN_STACK], *made = NULL;
    int n = 0, marks[PLAIN_DEPTH + 1], nmarks = 0;
    uint8_t before = 0, of_dict[PLAIN_DEPTH + 1] = {0};
    if (nbytes < 3 || p[0] != 0x80 || p[1] > 5) { /* of a protocol that there is not yet: pickle says so */
        return NULL;
    }
    p += 2;
#define NEED(k)                                                                                                        \
    if ((size_t)(end - p) < (size_t)(k)) {                                                                             \
        goto other;                                                                                                    \
    }
    while (p < end) {
        uint8_t op = *p++, last = before;
        int count;
        before = op;
        uint64_t length;
        made = NULL;
        switch (op) {
        case 'N':
            made = Py_NewRef(Py_None);
            break;
        case 0x88:
            made = Py_NewRef(Py_True);
            break;
        case 0x89:
            made = Py_NewRef(Py_False);
            break;
        case 'K':
            NEED(1);
            made = PyLong_FromLong(*p++);
            break;
        case 'M':
            NEED(2);
            made = PyLong_FromLong((long)plain_number(p, 2));
            p += 2;
            break;
        case 'J':
            NEED(4);
            made = PyLong_FromLong((int32_t)plain_number(p, 4));
            p += 4;
            break;
        case 0x8a:
            NEED(9);
            if (*p != 8) {
                goto other;
            }
            made = PyLong_FromLongLong((long long)plain_number(p + 1, 8));
            p += 9;
            break;
        case 'G': {
            NEED(8);
            uint64_t bits = 0;
            double v;
            for (int i = 0; i < 8; i++) {
                bits = bits << 8 | *p++;
            }
            memcpy(&v, &bits, 8);
            made = PyFloat_FromDouble(v);
            break;
        }
        case 0x8c:
        case 'X':
        case 'C':
        case 'B':
            count = op == 0x8c || op == 'C' ? 1 : 4;
            NEED(count);
            length = plain_number(p, count);
            p += count;
            NEED(length);
            if (op == 0x8c && nmarks > 0 && of_dict[nmarks - 1] && (n - marks[nmarks - 1]) % 2 == 0) {
                made = plain_key(p, length);
            } else {
                made = op == 0x8c || op == 'X' ? PyUnicode_DecodeUTF8((const char *)p, (Py_ssize_t)length, NULL)
                                               : PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)length);
            }
            p += length;
            break;
        case ')':
        case 0x85:
        case 0x86:
        case 0x87:
        case 't':
            if (op == 't' && nmarks == 0) {
                goto other;
            }
            count = op == ')' ? 0 : op == 't' ? n - marks[--nmarks] : op - 0x84;
            if (count > n - (nmarks > 0 ? marks[nmarks - 1] : 0)) { /* it may not reach below the mark */
                goto other;
            }
            made = PyTuple_New(count);
            if (made != NULL) {
                n -= count;
                for (int i = 0; i < count; i++) {
                    PyTuple_SET_ITEM(made, i, stack[n + i]);
                }
            }
            break;
        case ']':
            made = PyList_New(0);
            break;
        case '}':
            made = PyDict_New();
            break;
        case '(':
            if (nmarks > PLAIN_DEPTH) {
                goto other;
            }
            of_dict[nmarks] = last == '}';
            marks[nmarks++] = n;
            continue;
        case 'e':
        case 'u': {
            if (nmarks == 0) {
                goto other;
            }
            int first = marks[--nmarks];
            PyObject *target = first > 0 ? stack[first - 1] : NULL;
            if (target == NULL || (op == 'e' ? !PyList_CheckExact(target) : !PyDict_CheckExact(target) || (n - first) % 2)) {
                goto other;
            }
            for (int i = first; i < n; i += op == 'e' ? 1 : 2) {
                if ((op == 'e' ? PyList_Append(target, stack[i]) : PyDict_SetItem(target, stack[i], stack[i + 1])) < 0) {
                    goto other;
                }
            }
            while (n > first) {
                Py_DECREF(stack[--n]);
            }
            continue;
        }
        case '.':
            if (n == 1 && nmarks == 0 && p == end) {
                return stack[0];
            }
            goto other;
        default:
            goto other;
        }
        if (made == NULL || n == PLAIN_STACK) {
            Py_XDECREF(made);
            goto other;
        }
        stack[n++] = made;
    }
other:
#undef NEED
    while (n > 0) {
        Py_DECREF(stack[--n]);
    }
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
    }
    return NULL;
}

#endif
