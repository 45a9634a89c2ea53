/* The characters of a str, read where they are: no object is made. */
#ifndef HM_TEXT_H
#define HM_TEXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>

#define HM_UTF8_MOST 4 /* bytes of one character */

/* UTF-8 of one character, lone surrogates as they are: Python decodes it with "surrogatepass". */
static inline size_t hm_encode(Py_UCS4 character, unsigned char *bytes)
{
    if (character < 0x80) {
        bytes[0] = (unsigned char)character;
        return 1;
    }
    size_t size = character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
    for (size_t at = size; --at > 0; character >>= 6) {
        bytes[at] = (unsigned char)(0x80 | (character & 0x3F));
    }
    bytes[0] = (unsigned char)((0xF00 >> size & 0xFF) | character);
    return size;
}

/* UTF-8 of the characters from `first` on, into room for HM_UTF8_MOST bytes each; returns how many bytes it is. */
static inline size_t hm_encode_all(PyObject *text, Py_ssize_t first, unsigned char *bytes)
{
    size_t length = 0;
    for (Py_ssize_t at = first; at < PyUnicode_GET_LENGTH(text); at++) {
        length += hm_encode(PyUnicode_READ_CHAR(text, at), bytes + length);
    }
    return length;
}

#endif
