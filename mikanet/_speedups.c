/* Optional speed-ups; every function here has a plain-Python twin with the same results, and the same tests.
 *
 * combine          Reed-Solomon: sums of products in GF(2^8), polynomial 0x11D (mikanet.fec.reedsolomon.plain_combine)
 * checksum         the internet checksum, RFC 1071
 * check_and_add    the memory of packets (mikanet.crypto.packet_seen)
 * send_frames      frames of a raw port, made and sent in batches (mikanet.rawpackets.frames.FrameMaker.make)
 * receive_frames   the same, received and opened (mikanet.rawpackets.frames.open_runs)
 *
 * Written against the limited API, so that one build serves every Python from 3.11 on.
 */

#ifdef __linux__
#define _GNU_SOURCE /* sendmmsg, recvmmsg */
#endif
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#ifdef __linux__
#define HAVE_FRAMES 1
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>
#endif

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

/* The ones' complement sum, folded to 16 bits and not complemented. */
static uint32_t
ones_sum(const uint8_t *bytes, Py_ssize_t left)
{
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
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    const uint16_t one = 1;
    if (*(const uint8_t *)&one)
        sum = (sum & 0xFF) << 8 | sum >> 8;
    return (uint32_t)sum;
}

/* The checksum of a sum to which more was added. */
static uint32_t
complement(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return ~(uint32_t)sum & 0xFFFF;
}

static PyObject *
speedups_checksum(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned long initial = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*|k:checksum", &data, &initial))
        return NULL;
    uint64_t sum = (uint64_t)ones_sum(data.buf, data.len) + initial;
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(complement(sum));
}

/* -- frames of raw ports ------------------------------------------------------------------------------------------ */

#ifdef HAVE_FRAMES

#define BATCH 64
#define ETHERNET 14
#define TCP_PLAIN 32
#define MAX_PREFIX (ETHERNET + 40 + 4)
#define MAX_FRAME 2048
#define MAX_PAYLOAD 1500
#define NOP_NOP_TIMESTAMPS 0x0101080Au

static void
put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void
put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint32_t
get16(const uint8_t *at)
{
    return (uint32_t)at[0] << 8 | at[1];
}

/* Everything up to the payload. `prefix` ends behind the ports; `sum` is that of what does not change. */
static void
make_header(uint8_t *header, const uint8_t *prefix, Py_ssize_t prefix_length, uint64_t sum, uint32_t epoch,
            uint64_t number, uint32_t flags, const uint8_t *payload, Py_ssize_t length)
{
    uint32_t value = epoch + (uint32_t)(number >> 3);
    uint32_t seq = epoch + (uint32_t)(number << 7);
    uint32_t ack = seq - (uint32_t)(number & 0x3FF) + 1400;
    uint32_t echo = value - (uint32_t)(number % 200) - 50;
    uint32_t tcp_length = (uint32_t)length + TCP_PLAIN;
    memcpy(header, prefix, (size_t)prefix_length);
    if (prefix_length == MAX_PREFIX)
        put16(header + ETHERNET + 4, tcp_length);
    else {
        put16(header + ETHERNET + 2, 20 + tcp_length);
        put16(header + ETHERNET + 10, 0);
        put16(header + ETHERNET + 10, complement(ones_sum(header + ETHERNET, 20)));
    }
    flags |= 8u << 12;
    sum += (uint64_t)tcp_length + flags + seq + ack + NOP_NOP_TIMESTAMPS + value + echo + ones_sum(payload, length);
    uint8_t *at = header + prefix_length;
    put32(at, seq);
    put32(at + 4, ack);
    put16(at + 8, flags);
    put16(at + 10, 65535);
    put16(at + 12, complement(sum));
    put16(at + 14, 0);
    put32(at + 16, NOP_NOP_TIMESTAMPS);
    put32(at + 20, value);
    put32(at + 24, echo);
}

/* Sends a frame for each payload; how many the kernel took. */
static PyObject *
speedups_send_frames(PyObject *module, PyObject *args)
{
    Py_buffer prefix, flags;
    PyObject *payloads;
    int fd;
    unsigned long sum, epoch;
    unsigned long long number;
    Py_ssize_t at, sent = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "iy*kkKy*nO:send_frames", &fd, &prefix, &sum, &epoch, &number, &flags, &at, &payloads))
        return NULL;
    Py_ssize_t entries = flags.len / 2, count = PyList_Check(payloads) ? PyList_Size(payloads) : -1;
    if (count < 0 || entries < 1 || at < 0 || at >= entries ||
        (prefix.len != MAX_PREFIX && prefix.len != MAX_PREFIX - 20)) {
        PyErr_SetString(PyExc_ValueError, "a prefix, flags, a place in them, and a list of payloads");
        goto failed;
    }
    while (sent < count) {
        uint8_t headers[BATCH][MAX_PREFIX + TCP_PLAIN];
        struct iovec parts[BATCH][2];
        struct mmsghdr messages[BATCH];
        int batch = count - sent < BATCH ? (int)(count - sent) : BATCH;
        memset(messages, 0, sizeof(messages[0]) * (size_t)batch);
        for (int i = 0; i < batch; i++) {
            char *payload;
            Py_ssize_t length;
            if (PyBytes_AsStringAndSize(PyList_GetItem(payloads, sent + i), &payload, &length) < 0)
                goto failed;
            if (length > 60000) {
                PyErr_SetString(PyExc_ValueError, "a payload that does not fit a packet");
                goto failed;
            }
            number++;
            make_header(headers[i], prefix.buf, prefix.len, sum, (uint32_t)epoch, number,
                        get16((const uint8_t *)flags.buf + 2 * ((at + sent + i) % entries)), (const uint8_t *)payload,
                        length);
            parts[i][0].iov_base = headers[i];
            parts[i][0].iov_len = (size_t)prefix.len + TCP_PLAIN - 4;
            parts[i][1].iov_base = payload;
            parts[i][1].iov_len = (size_t)length;
            messages[i].msg_hdr.msg_iov = parts[i];
            messages[i].msg_hdr.msg_iovlen = 2;
        }
        int taken = sendmmsg(fd, messages, (unsigned)batch, MSG_DONTWAIT);
        if (taken < 0) {
            if (sent || errno == EAGAIN || errno == EINTR || errno == ENOBUFS)
                break;
            PyErr_SetFromErrno(PyExc_OSError);
            goto failed;
        }
        sent += taken;
        if (taken < batch)
            break;
    }
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&flags);
    return PyLong_FromSsize_t(sent);
failed:
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&flags);
    return NULL;
}

/* Where the sender's key and the payload of a frame stand. */
struct opened {
    const uint8_t *address, *payload;
    Py_ssize_t address_length, payload_length;
    const uint8_t *port;
};

/* Whether a frame is what it should be; what is unusual but may be right is left to others. */
static int
open_frame(const uint8_t *frame, Py_ssize_t length, struct opened *found)
{
    Py_ssize_t end, begin, transport;
    if (length < ETHERNET + 40)
        return 0;
    if (get16(frame + 12) == 0x0800 && frame[14] == 0x45) {
        transport = ETHERNET + 20;
        end = ETHERNET + (Py_ssize_t)get16(frame + 16);
        if (frame[23] != 6 || get16(frame + 20) & 0x3FFF || ones_sum(frame + ETHERNET, 20) != 0xFFFF)
            return 0;
        found->address = frame + 26;
        found->address_length = 4;
    } else if (get16(frame + 12) == 0x86DD && frame[14] >> 4 == 6 && length >= ETHERNET + 60) {
        transport = ETHERNET + 40;
        end = transport + (Py_ssize_t)get16(frame + 18);
        if (frame[20] != 6)
            return 0;
        found->address = frame + 22;
        found->address_length = 16;
    } else
        return 0;
    begin = transport + (frame[transport + 12] >> 4) * 4;
    if (begin < transport + 20 || begin >= end || end > length || end - begin > MAX_PAYLOAD)
        return 0;
    /* Addresses stand before the transport in both families, so they and it are summed at one go. */
    uint64_t sum = (uint64_t)ones_sum(found->address, end - (found->address - frame)) + (uint64_t)(end - transport) + 6;
    if (complement(sum))
        return 0;
    found->port = frame + transport;
    found->payload = frame + begin;
    found->payload_length = end - begin;
    return 1;
}

/* Appends a new bytes object; -1 with an exception set if that fails. */
static int
append_bytes(PyObject *list, const uint8_t *bytes, Py_ssize_t length)
{
    PyObject *made = PyBytes_FromStringAndSize((const char *)bytes, length);
    int problem = made == NULL || PyList_Append(list, made) < 0;
    Py_XDECREF(made);
    return problem ? -1 : 0;
}

/* Begins a run: (station, key, [payloads]); a borrowed reference to the last, or NULL. */
static PyObject *
begin_run(PyObject *runs, const uint8_t *station, const uint8_t *key, Py_ssize_t key_length)
{
    PyObject *payloads = PyList_New(0);
    /* Not Py_BuildValue: what 3.13's headers make of its y# does not work under 3.11 and 3.12. */
    PyObject *from = PyBytes_FromStringAndSize((const char *)station, 6);
    PyObject *name = PyBytes_FromStringAndSize((const char *)key, key_length);
    PyObject *run = payloads && from && name ? PyTuple_Pack(3, from, name, payloads) : NULL;
    int problem = run == NULL || PyList_Append(runs, run) < 0;
    Py_XDECREF(from);
    Py_XDECREF(name);
    Py_XDECREF(payloads); /* the run has it */
    Py_XDECREF(run);      /* the list has it */
    return problem ? NULL : payloads;
}

/* Only used with the interpreter's lock held. */
static uint8_t frames[BATCH][MAX_FRAME];

static PyObject *
speedups_receive_frames(PyObject *module, PyObject *args)
{
    int fd;
    Py_ssize_t most, got = 0;
    uint8_t run_key[18], run_station[6];
    Py_ssize_t run_key_length = 0;
    PyObject *runs = NULL, *refused = NULL, *payloads = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "in:receive_frames", &fd, &most))
        return NULL;
    if ((runs = PyList_New(0)) == NULL || (refused = PyList_New(0)) == NULL)
        goto failed;
    while (got < most) {
        struct iovec parts[BATCH];
        struct mmsghdr messages[BATCH];
        int batch = most - got < BATCH ? (int)(most - got) : BATCH;
        memset(messages, 0, sizeof(messages[0]) * (size_t)batch);
        for (int i = 0; i < batch; i++) {
            parts[i].iov_base = frames[i];
            parts[i].iov_len = MAX_FRAME;
            messages[i].msg_hdr.msg_iov = &parts[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        int taken = recvmmsg(fd, messages, (unsigned)batch, MSG_DONTWAIT, NULL);
        if (taken < 0) {
            if (got || errno == EAGAIN || errno == EINTR)
                break;
            PyErr_SetFromErrno(PyExc_OSError);
            goto failed;
        }
        got += taken;
        for (int i = 0; i < taken; i++) {
            Py_ssize_t length = (Py_ssize_t)messages[i].msg_len;
            struct opened found;
            if (!open_frame(frames[i], length, &found)) {
                if (append_bytes(refused, frames[i], length) < 0)
                    goto failed;
                continue;
            }
            if (payloads == NULL || run_key_length != found.address_length + 2 ||
                memcmp(run_key, found.address, (size_t)found.address_length) ||
                memcmp(run_key + found.address_length, found.port, 2) || memcmp(run_station, frames[i] + 6, 6)) {
                memcpy(run_key, found.address, (size_t)found.address_length);
                memcpy(run_key + found.address_length, found.port, 2);
                memcpy(run_station, frames[i] + 6, 6);
                run_key_length = found.address_length + 2;
                if ((payloads = begin_run(runs, run_station, run_key, run_key_length)) == NULL)
                    goto failed;
            }
            if (append_bytes(payloads, found.payload, found.payload_length) < 0)
                goto failed;
        }
        if (taken < batch)
            break;
    }
    PyObject *result = Py_BuildValue("(NN)", runs, refused);
    return result;
failed:
    Py_XDECREF(runs);
    Py_XDECREF(refused);
    return NULL;
}

#endif

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
#ifdef HAVE_FRAMES
    {"send_frames", speedups_send_frames, METH_VARARGS,
     "send_frames(fd, prefix, sum, epoch, number, flags, at, payloads): make and send frames."},
    {"receive_frames", speedups_receive_frames, METH_VARARGS, "receive_frames(fd, most): receive and open frames."},
#endif
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
