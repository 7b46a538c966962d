/* Reads the header of a JPEG. Anything unusual is refused, since the caller then decodes the complete file. */
#include "jpeg.h"

#include <string.h>

#define TARGET_PIXELS 64
#define FEWEST_PIXELS 32768

static int two_bytes(const uint8_t *at) { return at[0] << 8 | at[1]; }

int next_segment(const jpeg *image, size_t *place, segment *found) {
    size_t at = *place;
    if (at + 2 > image->size || image->data[at] != 0xFF) return 0;
    size_t start = at++;
    while (at < image->size && image->data[at] == 0xFF) start = at++; /* fill bytes */
    if (at + 3 > image->size) return 0;
    size_t length = (size_t)two_bytes(image->data + at + 1);
    if (length < 2 || length > image->size - at - 1) return 0;
    found->marker = image->data[at];
    found->start = start;
    found->end = *place = at + 1 + length;
    return 1;
}

static int read_frame(jpeg *image, const uint8_t *body, size_t length) {
    if (image->frame || length < 6 || body[0] != 8) return 0;
    image->height = two_bytes(body + 1);
    image->width = two_bytes(body + 3);
    image->num_components = body[5];
    if (!image->height || !image->width) return 0;
    if (image->num_components != 1 && image->num_components != 3) return 0;
    if (length != 6 + 3 * (size_t)image->num_components) return 0;
    int most_across = 1, most_down = 1, blocks = 0;
    for (int c = 0; c < image->num_components; c++) {
        component *one = &image->components[c];
        one->id = body[6 + 3 * c];
        one->across = body[7 + 3 * c] >> 4;
        one->down = body[7 + 3 * c] & 15;
        if (one->across < 1 || one->across > 4 || one->down < 1 || one->down > 4) return 0;
        if (image->num_components == 1) one->across = one->down = 1; /* T.81, A.2.2: its MCU is one block */
        blocks += one->across * one->down;
        if (one->across > most_across) most_across = one->across;
        if (one->down > most_down) most_down = one->down;
    }
    image->mcu_width = 8 * most_across;
    image->mcu_height = 8 * most_down;
    image->per_row = (image->width + image->mcu_width - 1) / image->mcu_width;
    image->num_rows = (image->height + image->mcu_height - 1) / image->mcu_height;
    return blocks <= MAX_BLOCKS;
}

static int read_tables(jpeg *image, const uint8_t *body, size_t length) {
    while (length) {
        if (length < 17 || (body[0] & 0xEC)) return 0;
        huffman_table *table = &image->tables[body[0] >> 4][body[0] & 3];
        size_t total = 0;
        for (int bits = 1; bits <= 16; bits++) total += table->counts[bits] = body[bits];
        if (total < 1 || total > 256 || total > length - 17) return 0;
        table->num_symbols = (int)total;
        memcpy(table->symbols, body + 17, total);
        body += 17 + total;
        length -= 17 + total;
    }
    return 1;
}

static int read_scan(jpeg *image, const uint8_t *body, size_t length) {
    if (!image->frame || length < 1 || body[0] != image->num_components) return 0;
    if (length != 4 + 2 * (size_t)body[0]) return 0;
    for (int c = 0; c < image->num_components; c++) {
        component *one = &image->components[c];
        one->dc = body[2 + 2 * c] >> 4;
        one->ac = body[2 + 2 * c] & 15;
        if (body[1 + 2 * c] != one->id || one->dc > 3 || one->ac > 3) return 0;
        if (!image->tables[0][one->dc].num_symbols || !image->tables[1][one->ac].num_symbols) return 0;
    }
    const uint8_t *last = body + length - 3;
    return last[0] == 0 && last[1] == 63 && last[2] == 0;
}

int read_header(jpeg *image, const uint8_t *data, size_t size) {
    memset(image, 0, sizeof *image);
    image->data = data;
    image->size = size;
    if (size < 4 || data[0] != 0xFF || data[1] != MARKER_SOI) return 0;
    size_t place = 2;
    segment found;
    while (next_segment(image, &place, &found)) {
        const uint8_t *body = data + found.start + 4;
        size_t length = found.end - found.start - 4;
        int marker = found.marker, sound = 1;
        if (marker == MARKER_SOF0 || marker == MARKER_SOF1) {
            sound = read_frame(image, body, length);
            image->frame = found.start;
        } else if (marker == MARKER_DHT) {
            sound = read_tables(image, body, length);
        } else if (marker == MARKER_DRI) {
            sound = length == 2;
            if (sound) image->interval = two_bytes(body);
        } else if (marker == MARKER_SOS) {
            image->scan = found.end;
            return read_scan(image, body, length);
        } else {
            sound = marker == MARKER_DQT || marker == MARKER_COM;
            sound |= marker >= MARKER_APP0 && marker <= MARKER_APP15;
            image->has_metadata |= marker == MARKER_APP1 || marker == MARKER_APP2;
        }
        if (!sound) return 0;
    }
    return 0;
}

int best_interval(const jpeg *image) {
    int best = image->per_row, distance = -1;
    for (int n = 1; n <= image->per_row; n++) {
        int pixels = n * image->mcu_width;
        int off = pixels > TARGET_PIXELS ? pixels - TARGET_PIXELS : TARGET_PIXELS - pixels;
        if (image->per_row % n || 4 * pixels < 3 * TARGET_PIXELS || pixels > 2 * TARGET_PIXELS) continue;
        if (distance < 0 || off < distance) best = n, distance = off;
    }
    return (int64_t)image->height * image->width < FEWEST_PIXELS ? 0 : best;
}
