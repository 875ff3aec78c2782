/* tests/fuzz/targets/python.c - a decoder behind Python: calls decoders.NAME(bytes) in this process.
 *
 * The interpreter is part of the fuzzer, and the native modules, which are built with the same sanitizers and counters,
 * report to it like any C. NOVA_FUZZ_TARGET is NAME; NOVA_FUZZ_PYTHON the virtual environment's interpreter. */
#include <Python.h>

#include "fuzz.h"

static PyObject *target;

static void die(const char *why)
{
    fprintf(stderr, "fuzz: %s\n", why);
    if (PyErr_Occurred())
        PyErr_Print();
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *name = getenv("NOVA_FUZZ_TARGET"), *python = getenv("NOVA_FUZZ_PYTHON");
    PyConfig config;
    if (!name || !python)
        die("NOVA_FUZZ_TARGET and NOVA_FUZZ_PYTHON are to be set; tests/fuzz/run.py does");
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, python);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    PyObject *module = PyImport_ImportModule("decoders");
    target = module ? PyObject_GetAttrString(module, name) : NULL;
    if (!target)
        die("the target cannot be imported");
    Py_DECREF(module);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    PyObject *result = bytes ? PyObject_CallOneArg(target, bytes) : NULL;
    if (!result)
        die("the target raised");
    Py_DECREF(result);
    Py_DECREF(bytes);
    return 0;
}
