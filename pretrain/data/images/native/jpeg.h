/* The structure of a sequential JPEG with one scan, as read by header.c. Source: ITU-T T.81, annexes B, C and F. */
#ifndef JPEG_H
#define JPEG_H

#include <stddef.h>
#include <stdint.h>

#define MAX_COMPONENTS 3
#define MAX_BLOCKS 10 /* of an MCU: T.81, B.2.3 */

enum {
    MARKER_SOF0 = 0xC0,
    MARKER_SOF1 = 0xC1,
    MARKER_DHT = 0xC4,
    MARKER_RST0 = 0xD0,
    MARKER_RST7 = 0xD7,
    MARKER_SOI = 0xD8,
    MARKER_EOI = 0xD9,
    MARKER_SOS = 0xDA,
    MARKER_DQT = 0xDB,
    MARKER_DRI = 0xDD,
    MARKER_APP0 = 0xE0,
    MARKER_APP1 = 0xE1, /* Exif, XMP */
    MARKER_APP2 = 0xE2, /* colour profile */
    MARKER_APP14 = 0xEE,
    MARKER_APP15 = 0xEF,
    MARKER_COM = 0xFE
};

typedef struct {
    int num_symbols;       /* 0: the file does not define this table */
    uint8_t counts[17];    /* of the codes with 1 ... 16 bits */
    uint8_t symbols[256];  /* in the order of their codes */
} huffman_table;

typedef struct {
    uint8_t id, across, down; /* sampling factors */
    uint8_t dc, ac;           /* numbers of its tables */
} component;

typedef struct {
    const uint8_t *data;
    size_t size;
    int height, width;          /* pixels */
    int num_components;
    component components[MAX_COMPONENTS];
    int mcu_height, mcu_width;  /* pixels */
    int per_row, num_rows;      /* MCUs */
    int has_metadata;           /* Exif, XMP or a colour profile */
    int interval;               /* MCUs between two restart markers; 0: the file has none */
    size_t frame;               /* offset of the SOF marker */
    size_t scan;                /* offset of the first byte of coded data */
    huffman_table tables[2][4]; /* [0: DC, 1: AC][number] */
} jpeg;

/* A marker with its data: the bytes from start (of the marker) to end. */
typedef struct {
    int marker;
    size_t start, end;
} segment;

/* Reads the segment at *place and moves *place to its end; 0 if there is none. */
int next_segment(const jpeg *image, size_t *place, segment *found);

/* 1; or 0 if it is not an 8-bit Huffman-coded sequential JPEG with 1 or 3 components in one scan, or damaged. */
int read_header(jpeg *image, const uint8_t *data, size_t size);

/* MCUs of a restart interval of about 64 pixels that divides a row of MCUs; a row, if it has no such divisor; 0 for an
 * image of so few pixels that markers save nothing. */
int best_interval(const jpeg *image);

/* cut.c: the restart intervals that a box touches, as a JPEG of its own. */
typedef struct {
    int top, left, height, width; /* pixels */
} box;

typedef struct {
    size_t *starts;                 /* first byte of each interval; in the end the offset after EOI */
    int first_row, last_row;        /* MCU rows */
    int first_group, last_group;    /* intervals of a row */
    size_t groups;                  /* intervals per row */
    size_t size;                    /* bytes of the result */
    int top, left;                  /* of the result in the image */
} cut_plan;

/* 1; or 0 if the image has no usable markers, or the box touches nearly all intervals. Free plan->starts after 1. */
int plan_cut(const jpeg *image, box wanted, cut_plan *plan);
void write_cut(const jpeg *image, const cut_plan *plan, uint8_t *out);

/* huffman.c */
typedef struct {
    uint16_t quick[256];  /* by the next 8 bits: length << 8 | symbol; 0: a longer code */
    int32_t largest[18];  /* the largest code of each length; -1: none */
    int32_t offsets[17];  /* index of a code's symbol, minus the code */
    const uint8_t *symbols;
} decoding_table;

typedef struct {
    uint16_t codes[256];
    uint8_t lengths[256]; /* 0: the symbol has no code */
} encoding_table;

int make_decoding_table(const huffman_table *table, decoding_table *made);
void make_encoding_table(const huffman_table *table, encoding_table *made);
void optimal_table(const uint64_t counts[256], huffman_table *made);

/* transcode.c: 1, and *out and *out_size, to be freed; 0: damaged or not supported; -1: no memory. */
int add_restarts(const jpeg *image, int interval, uint8_t **out, size_t *out_size);

#endif
