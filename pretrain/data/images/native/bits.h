/* Reads and writes the bits of coded data, in which a zero byte follows each byte FF. Source: ITU-T T.81, F.1.2.3. */
#ifndef BITS_H
#define BITS_H

#include <stdint.h>
#include <stdlib.h>

#include "jpeg.h"

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits; /* the lowest `count` of them are the next ones */
    int count;
    int is_damaged;
} bit_reader;

typedef struct {
    uint8_t *bytes;
    size_t size, capacity;
    uint64_t bits;
    int count;
    int is_full; /* no memory */
} bit_writer;

static inline void fill(bit_reader *reader) {
    while (reader->count <= 48 && reader->at < reader->end) {
        int byte = *reader->at;
        if (byte == 0xFF) {
            if (reader->end - reader->at < 2 || reader->at[1]) return; /* a marker */
            reader->at++;
        }
        reader->at++;
        reader->bits = reader->bits << 8 | (uint64_t)byte;
        reader->count += 8;
    }
}

/* The next n (at most 16) bits; zeros follow the last one. */
static inline uint32_t peek(bit_reader *reader, int n) {
    if (reader->count < n) fill(reader);
    uint64_t bits = reader->count >= n ? reader->bits >> (reader->count - n) : reader->bits << (n - reader->count);
    return (uint32_t)(bits & ((1u << n) - 1));
}

static inline void skip(bit_reader *reader, int n) {
    if (n > reader->count) reader->is_damaged = 1;
    else reader->count -= n;
}

static inline int read_symbol(bit_reader *reader, const decoding_table *table) {
    int quick = table->quick[peek(reader, 8)];
    if (quick) {
        skip(reader, quick >> 8);
        return quick & 255;
    }
    for (int bits = 9; bits <= 16; bits++) {
        int32_t code = (int32_t)peek(reader, bits);
        if (code <= table->largest[bits]) {
            skip(reader, bits);
            return table->symbols[(code + table->offsets[bits]) & 255];
        }
    }
    reader->is_damaged = 1;
    return 0;
}

static inline void put_byte(bit_writer *writer, int byte) {
    if (writer->size == writer->capacity) {
        size_t capacity = writer->capacity ? 2 * writer->capacity : 1 << 16;
        uint8_t *larger = realloc(writer->bytes, capacity);
        if (!larger) {
            writer->is_full = 1;
            return;
        }
        writer->bytes = larger;
        writer->capacity = capacity;
    }
    writer->bytes[writer->size++] = (uint8_t)byte;
}

static inline void put_bits(bit_writer *writer, uint32_t bits, int n) {
    writer->bits = writer->bits << n | bits;
    for (writer->count += n; writer->count >= 8; writer->count -= 8) {
        int byte = (int)(writer->bits >> (writer->count - 8) & 255);
        put_byte(writer, byte);
        if (byte == 0xFF) put_byte(writer, 0);
    }
}

/* Fills the last byte with ones. */
static inline void finish_byte(bit_writer *writer) {
    if (writer->count) put_bits(writer, (1u << (8 - writer->count)) - 1, 8 - writer->count);
}

#endif
