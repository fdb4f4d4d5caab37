/* The plain codec against the pickle module, in an interpreter inside this program: what plain_load reads, pickle
 * reads with the same result; what plain_dump writes, both read as the original; neither leaves an error set, or a
 * reference. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "plain.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <structmember.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            PyErr_Print();                                                                                             \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Replaces an array of NumPy: a buffer, and a dtype that may have metadata. */
typedef struct {
    PyObject_HEAD PyObject *view, *dtype;
} array_like;

static int array_new(array_like *self, PyObject *args, PyObject *named)
{
    (void)named;
    if (!PyArg_ParseTuple(args, "OO", &self->view, &self->dtype)) {
        return -1;
    }
    Py_INCREF(self->view);
    Py_INCREF(self->dtype);
    return 0;
}

static void array_end(array_like *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->view);
    Py_XDECREF(self->dtype);
    type->tp_free(self);
    Py_DECREF(type);
}

static int array_buffer(array_like *self, Py_buffer *view, int flags)
{
    return PyObject_GetBuffer(self->view, view, flags);
}

static PyMemberDef array_members[] = {{"view", T_OBJECT_EX, offsetof(array_like, view), READONLY, NULL},
                                      {"dtype", T_OBJECT_EX, offsetof(array_like, dtype), READONLY, NULL},
                                      {0}};
static PyType_Slot array_slots[] = {{Py_tp_new, PyType_GenericNew},  {Py_tp_init, array_new},
                                    {Py_tp_dealloc, array_end},      {Py_tp_members, array_members},
                                    {Py_bf_getbuffer, array_buffer}, {0, NULL}};
static PyType_Spec array_spec = {"array_like", sizeof(array_like), 0, Py_TPFLAGS_DEFAULT, array_slots};
static PyObject *array_type;

static PyObject *same_as_pickle, *same_arrays, *make_object;
static int shared;

static const char *const program =
    "import pickle, sys, types\n"
    "sys.modules['copyless'] = types.ModuleType('copyless')\n"
    "loaders = sys.modules['copyless._loaders'] = types.ModuleType('copyless._loaders')\n"
    "loaders.array_over = lambda buffer, code, shape: (bytes(buffer), code, shape, memoryview(buffer).readonly)\n"
    "class dtype:\n"
    "    metadata = None\n"
    "dtypes = {}\n"
    "class special:\n"
    "    metadata = {'unit': 'm'}\n"
    "def array(view, how):\n"
    "    if how & 12 == 12: return view\n" /* not an array, for the writer */
    "    if how & 12 == 8: return array_like(view, special if how & 1 else None)\n"
    "    return array_like(view, dtypes.setdefault(view.format, dtype()) if how & 1 else dtype())\n"
    "def same_as_pickle(data, value):\n"
    "    found = pickle.loads(data)\n"
    "    return repr(found) == repr(value)\n"
    "def flat(o):\n"
    "    if type(o) is array_like: return flat(o.view)\n"
    "    if type(o) is memoryview: return (o.tobytes(), o.format, o.shape, o.readonly)\n"
    "    if type(o) is dict: return {flat(k): flat(v) for k, v in o.items()}\n"
    "    return type(o)(flat(x) for x in o) if type(o) in (tuple, list) else o\n"
    "def same_arrays(data, beside, value):\n"
    "    found, wanted = repr(pickle.loads(data, buffers=beside)), repr(flat(value))\n"
    "    if found != wanted: print(found, wanted, sep='\\n', file=sys.stderr)\n"
    "    return found == wanted\n"
    "def make_object(data):\n" /* any object, from bytes: possible inputs of the writer */
    "    at = 0\n"
    "    def byte():\n"
    "        nonlocal at\n"
    "        at += 1\n"
    "        return data[at - 1] if at <= len(data) else 0\n"
    "    made = []\n"
    "    def one(depth):\n"
    "        what, n = byte() % 16, byte()\n"
    "        if depth == 0 or what == 0: return None\n"
    "        if what == 1: return bool(n & 1)\n"
    "        if what == 2: return n\n"
    "        if what == 3: return (n - 128) << (byte() % 80)\n"
    "        if what == 4: return (n - 128) / (byte() or 1) * 10.0 ** (byte() % 200)\n"
    "        if what == 5: return 'x' * (n * (1 + byte() % 3))\n"
    "        if what == 6: return chr(n * 251 + byte()) * 2\n"
    "        if what == 7: return b'y' * (n * (1 + byte() % 3))\n"
    "        if what in (8, 9): return tuple([one(depth - 1) for _ in range(n % 6)])\n"
    "        if what == 10: made.append([one(depth - 1) for _ in range(n % 6)]); return made[-1]\n"
    "        if what == 11: made.append({('k%d' % (byte() % 9) if n & 64 else 'k' * (byte() % 40)): one(depth - 1) for "
    "_ in range(n % 6)}); return made[-1]\n"
    "        if what == 12 and made: return made[n % len(made)]\n"
    "        if what == 13: return [float('nan'), 1j, {1}, bytearray(3), 10 ** 40][n % 5]\n"
    "        if what == 14: return [one(depth - 1)] * (n % 20)\n"
    "        code = 'bBhHiIlLqQfd?c'[n % 14]\n"
    "        size = memoryview(b'12345678').cast(code).itemsize\n"
    "        shape = [1 + byte() % 3 for _ in range(byte() % 6)]\n"
    "        total = size\n"
    "        for k in shape: total *= k\n"
    "        raw = bytearray(range(total)) if total < 256 else bytearray(total)\n"
    "        view = memoryview(raw if byte() & 1 else bytes(raw))\n"
    "        how = byte()\n"
    "        view = view.cast(code, shape) if how & 3 else view[::2]\n"
    "        made.append(array(view, how >> 2))\n"
    "        return made[-1]\n"
    "    return one(11)\n";

static int is_shared(const void *data, uint64_t nbytes)
{
    (void)data, (void)nbytes;
    return shared;
}

static void begin(void)
{
    setenv("PYTHONMALLOC", "malloc", 1);
    Py_InitializeEx(0);
    array_type = PyType_FromSpec(&array_spec);
    PyObject *names = PyDict_New();
    MUST(array_type != NULL && names != NULL && PyDict_SetItemString(names, "array_like", array_type) == 0);
    PyObject *done = PyRun_String(program, Py_file_input, names, names);
    MUST(done != NULL);
    same_as_pickle = PyDict_GetItemString(names, "same_as_pickle");
    same_arrays = PyDict_GetItemString(names, "same_arrays");
    make_object = PyDict_GetItemString(names, "make_object");
}

static void is_same(const uint8_t *data, size_t size, PyObject *value)
{
    PyObject *yes = PyObject_CallFunction(same_as_pickle, "y#O", (const char *)data, (Py_ssize_t)size, value);
    MUST(yes == Py_True);
    Py_DECREF(yes);
}

static void read_it(const uint8_t *data, size_t size)
{
    PyObject *value = plain_load(data, size);
    MUST(!PyErr_Occurred());
    if (value != NULL) {
        is_same(data, size, value);
        Py_DECREF(value);
    }
}

static void write_it(const uint8_t *data, size_t size)
{
    uint8_t how = size > 0 ? data[0] : 0;
    static const size_t rooms[] = {16, 40, 200, 1000, 8192, 8192, 8192, 8192};
    size_t room = rooms[how & 7];
    PyObject *value =
        PyObject_CallFunction(make_object, "y#", (const char *)data + (size > 0), (Py_ssize_t)(size - (size > 0)));
    MUST(value != NULL);
    uint8_t *out = malloc(room);
    MUST(out != NULL);
    size_t n = plain_dump(value, out, room);
    MUST(!PyErr_Occurred() && n <= room);
    if (n != 0) {
        is_same(out, n, value);
        PyObject *again = plain_load(out, n);
        MUST(!PyErr_Occurred());
        if (again != NULL) {
            is_same(out, n, again);
            Py_DECREF(again);
        }
    }
    plain_arrays *arrays = calloc(1, sizeof *arrays);
    MUST(arrays != NULL);
    arrays->type = (PyTypeObject *)array_type;
    arrays->beside = how & 8 ? 16 : 4096;
    arrays->is_shared = is_shared;
    shared = how >> 4 == 15;
    n = plain_dump_with(value, out, room, arrays);
    MUST(!PyErr_Occurred() && n <= room);
    if (n != 0) {
        PyObject *beside = PyList_New(0);
        for (int i = 0; i < arrays->n; i++) {
            if (arrays->is_beside[i]) {
                PyList_Append(beside, arrays->seen[i]);
            }
        }
        PyObject *yes = PyObject_CallFunction(same_arrays, "y#OO", (const char *)out, (Py_ssize_t)n, beside, value);
        MUST(yes == Py_True);
        Py_DECREF(yes);
        Py_DECREF(beside);
    }
    for (int i = 0; i < arrays->n; i++) {
        Py_DECREF(arrays->seen[i]);
    }
    free(arrays);
    free(out);
    Py_DECREF(value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (make_object == NULL) {
        begin();
    }
    if (size > 0 && data[0] != 0x80) {
        write_it(data + 1, size - 1);
    } else {
        read_it(data, size);
    }
    return 0;
}
