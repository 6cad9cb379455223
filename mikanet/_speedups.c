/* Optional speed-ups; every function here has a plain-Python twin with the same results, and the same tests.
 *
 * combine          Reed-Solomon: sums of products in GF(2^8), polynomial 0x11D (mikanet.fec.reedsolomon.plain_combine)
 * checksum         the internet checksum, RFC 1071
 * check_and_add    the memory of packets (mikanet.crypto.packet_seen)
 *
 * Written against the limited API, so that one build serves every Python from 3.11 on.
 */

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
#define HAVE_X86 1
#include <immintrin.h>
#endif

/* -- GF(2^8) ------------------------------------------------------------------------------------------------------ */

/* Products of each factor with the low and the high half byte: what a byte shuffle can look up. */
static uint8_t low_products[256][16], high_products[256][16];

static uint8_t
multiply(unsigned a, unsigned b)
{
    unsigned result = 0;
    while (b) {
        if (b & 1)
            result ^= a;
        a <<= 1;
        if (a & 0x100)
            a ^= 0x11D;
        b >>= 1;
    }
    return (uint8_t)result;
}

static void
make_tables(void)
{
    for (unsigned factor = 0; factor < 256; factor++)
        for (unsigned half = 0; half < 16; half++) {
            low_products[factor][half] = multiply(factor, half);
            high_products[factor][half] = multiply(factor, half << 4);
        }
}

/* out[i] ^= factor * in[i] */
typedef void (*add_product)(uint8_t *out, const uint8_t *in, Py_ssize_t length, unsigned factor);

static void
add_product_plain(uint8_t *out, const uint8_t *in, Py_ssize_t length, unsigned factor)
{
    const uint8_t *low = low_products[factor], *high = high_products[factor];
    for (Py_ssize_t i = 0; i < length; i++)
        out[i] ^= low[in[i] & 15] ^ high[in[i] >> 4];
}

#ifdef HAVE_X86
__attribute__((target("ssse3"))) static void
add_product_ssse3(uint8_t *out, const uint8_t *in, Py_ssize_t length, unsigned factor)
{
    const __m128i low = _mm_loadu_si128((const __m128i *)low_products[factor]);
    const __m128i high = _mm_loadu_si128((const __m128i *)high_products[factor]);
    const __m128i mask = _mm_set1_epi8(15);
    Py_ssize_t i = 0;
    for (; i + 16 <= length; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(in + i));
        __m128i product = _mm_xor_si128(_mm_shuffle_epi8(low, _mm_and_si128(bytes, mask)),
                                        _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi64(bytes, 4), mask)));
        _mm_storeu_si128((__m128i *)(out + i), _mm_xor_si128(_mm_loadu_si128((const __m128i *)(out + i)), product));
    }
    add_product_plain(out + i, in + i, length - i, factor);
}

__attribute__((target("avx2"))) static void
add_product_avx2(uint8_t *out, const uint8_t *in, Py_ssize_t length, unsigned factor)
{
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)low_products[factor]));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)high_products[factor]));
    const __m256i mask = _mm256_set1_epi8(15);
    Py_ssize_t i = 0;
    for (; i + 32 <= length; i += 32) {
        __m256i bytes = _mm256_loadu_si256((const __m256i *)(in + i));
        __m256i product =
            _mm256_xor_si256(_mm256_shuffle_epi8(low, _mm256_and_si256(bytes, mask)),
                             _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi64(bytes, 4), mask)));
        _mm256_storeu_si256((__m256i *)(out + i),
                            _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(out + i)), product));
    }
    add_product_plain(out + i, in + i, length - i, factor);
}
#endif

static add_product add = add_product_plain;

static void
choose(void)
{
#ifdef HAVE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        add = add_product_avx2;
    else if (__builtin_cpu_supports("ssse3"))
        add = add_product_ssse3;
#endif
}

/* Adds one row's products into `out`; -1 with an exception set if something does not fit. */
static int
combine_row(PyObject *row, PyObject *shards, uint8_t *out, Py_ssize_t length)
{
    char *factors, *bytes;
    Py_ssize_t count, size;
    if (PyBytes_AsStringAndSize(row, &factors, &count) < 0)
        return -1;
    if (count != PyList_Size(shards)) {
        PyErr_SetString(PyExc_ValueError, "a row has one factor for each shard");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyBytes_AsStringAndSize(PyList_GetItem(shards, i), &bytes, &size) < 0)
            return -1;
        if (size > length) {
            PyErr_SetString(PyExc_ValueError, "a shard is longer than the result");
            return -1;
        }
        if (factors[i])
            add(out, (const uint8_t *)bytes, size, (uint8_t)factors[i]);
    }
    return 0;
}

static PyObject *
speedups_combine(PyObject *module, PyObject *args)
{
    PyObject *rows_given, *shards_given, *rows = NULL, *shards = NULL, *results = NULL;
    Py_ssize_t length;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOn:combine", &rows_given, &shards_given, &length))
        return NULL;
    if (length < 0) {
        PyErr_SetString(PyExc_ValueError, "a length is not negative");
        return NULL;
    }
    rows = PySequence_List(rows_given);
    shards = PySequence_List(shards_given);
    if (rows == NULL || shards == NULL || (results = PyList_New(0)) == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < PyList_Size(rows); i++) {
        PyObject *result = PyBytes_FromStringAndSize(NULL, length);
        if (result == NULL)
            goto failed;
        uint8_t *out = (uint8_t *)PyBytes_AsString(result);
        memset(out, 0, (size_t)length);
        int problem = combine_row(PyList_GetItem(rows, i), shards, out, length) < 0 ||
                      PyList_Append(results, result) < 0;
        Py_DECREF(result);
        if (problem)
            goto failed;
    }
    Py_DECREF(rows);
    Py_DECREF(shards);
    return results;
failed:
    Py_XDECREF(rows);
    Py_XDECREF(shards);
    Py_XDECREF(results);
    return NULL;
}

/* -- the internet checksum ---------------------------------------------------------------------------------------- */

static PyObject *
speedups_checksum(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned long initial = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*|k:checksum", &data, &initial))
        return NULL;
    const uint8_t *bytes = data.buf;
    Py_ssize_t left = data.len;
    /* Sums of 16-bit words do not depend on the byte order, up to a swap at the end; so add 32 bits at a time. */
    uint64_t sum = 0;
    for (; left >= 4; left -= 4, bytes += 4) {
        uint32_t word;
        memcpy(&word, bytes, 4);
        sum += word;
    }
    if (left >= 2) {
        uint16_t word;
        memcpy(&word, bytes, 2);
        sum += word;
        left -= 2;
        bytes += 2;
    }
    if (left) {
        uint8_t pair[2] = {*bytes, 0};
        uint16_t word;
        memcpy(&word, pair, 2);
        sum += word;
    }
    PyBuffer_Release(&data);
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    const uint16_t one = 1;
    if (*(const uint8_t *)&one)
        sum = (sum & 0xFF) << 8 | sum >> 8;
    sum += initial;
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return PyLong_FromUnsignedLong(~(unsigned long)sum & 0xFFFF);
}

/* -- packets that passed before ----------------------------------------------------------------------------------- */

#define IDENTITY 12
#define MAP ((Py_ssize_t)1 << 21)

/* 1: in the newer map, 2: in the older one only, 0: in neither. Its bits are in the newer map afterwards. */
static PyObject *
speedups_check_and_add(PyObject *module, PyObject *args)
{
    PyObject *newer_given, *older_given, *packet;
    char *bytes;
    Py_ssize_t size;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:check_and_add", &newer_given, &older_given, &packet) ||
        PyBytes_AsStringAndSize(packet, &bytes, &size) < 0)
        return NULL;
    if (!PyByteArray_Check(newer_given) || !PyByteArray_Check(older_given) ||
        PyByteArray_Size(newer_given) != MAP || PyByteArray_Size(older_given) != MAP || size < IDENTITY) {
        PyErr_SetString(PyExc_ValueError, "two maps of 2 MiB, and a packet of at least 12 bytes");
        return NULL;
    }
    uint8_t *newer = (uint8_t *)PyByteArray_AsString(newer_given);
    const uint8_t *older = (const uint8_t *)PyByteArray_AsString(older_given);
    const uint8_t *slice = (const uint8_t *)bytes;
    int in_newer = 1, in_older = 1;
    for (int i = 0; i < 4; i++, slice += 3) {
        uint32_t bits = slice[0] | (uint32_t)slice[1] << 8 | (uint32_t)slice[2] << 16;
        uint32_t at = bits >> 3;
        uint8_t bit = (uint8_t)(1u << (bits & 7));
        in_newer &= (newer[at] & bit) != 0;
        in_older &= (older[at] & bit) != 0;
        newer[at] |= bit;
    }
    return PyLong_FromLong(in_newer ? 1 : in_older ? 2 : 0);
}

/* -- the module --------------------------------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"combine", speedups_combine, METH_VARARGS, "combine(rows, shards, length): Reed-Solomon sums of products."},
    {"checksum", speedups_checksum, METH_VARARGS, "checksum(data, initial=0): the internet checksum."},
    {"check_and_add", speedups_check_and_add, METH_VARARGS, "check_and_add(newer, older, packet): seen before?"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "mikanet._speedups", "Optional speed-ups with plain-Python twins.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    make_tables();
    choose();
    return PyModule_Create(&definition);
}
