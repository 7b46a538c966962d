/* Adds restart markers to a JPEG without changing a coefficient: its symbols are read and written again.
 *
 * Only the DC differences at the start of an interval change. The first pass counts the symbols, the second writes them
 * with the tables that are optimal for these counts. Damaged data are refused, and so are symbols that no encoder writes.
 */
#include <string.h>

#include "bits.h"

#define MOST_DC_BITS 11 /* T.81, table F.1: of 8-bit samples */

typedef struct {
    const jpeg *image;
    int interval;                      /* of the result */
    bit_reader reader;
    decoding_table decoding[2][4];
    int read_dc[MAX_COMPONENTS];       /* predictors of the source */
    int written_dc[MAX_COMPONENTS];    /* and of the result */
    uint64_t counts[2][4][256];
    bit_writer *writer;                /* NULL in the first pass */
    encoding_table encoding[2][4];
} transcoder;

static void emit(transcoder *job, int class, int number, int symbol, uint32_t bits, int num_bits) {
    if (!job->writer) {
        job->counts[class][number][symbol]++;
        return;
    }
    const encoding_table *table = &job->encoding[class][number];
    put_bits(job->writer, table->codes[symbol], table->lengths[symbol]);
    put_bits(job->writer, bits, num_bits);
}

static uint32_t take(bit_reader *reader, int n) {
    uint32_t bits = peek(reader, n);
    skip(reader, n);
    return bits;
}

static void transcode_dc(transcoder *job, int c) {
    int number = job->image->components[c].dc;
    int num_bits = read_symbol(&job->reader, &job->decoding[0][number]);
    if (num_bits > MOST_DC_BITS) {
        job->reader.is_damaged = 1;
        return;
    }
    int bits = num_bits ? (int)take(&job->reader, num_bits) : 0;
    job->read_dc[c] += num_bits && bits < 1 << (num_bits - 1) ? bits - (1 << num_bits) + 1 : bits;
    int difference = job->read_dc[c] - job->written_dc[c], size = 0;
    job->written_dc[c] = job->read_dc[c];
    for (int rest = difference < 0 ? -difference : difference; rest; rest >>= 1) size++;
    if (size > MOST_DC_BITS) job->reader.is_damaged = 1;
    else emit(job, 0, number, size, (uint32_t)(difference < 0 ? difference + (1 << size) - 1 : difference), size);
}

static void transcode_block(transcoder *job, int c) {
    int number = job->image->components[c].ac;
    transcode_dc(job, c);
    for (int k = 1; k < 64 && !job->reader.is_damaged; k++) {
        int symbol = read_symbol(&job->reader, &job->decoding[1][number]);
        int num_bits = symbol & 15;
        k += symbol >> 4;
        if (num_bits ? k > 63 : symbol != 0 && (symbol != 0xF0 || k > 63)) job->reader.is_damaged = 1;
        emit(job, 1, number, symbol, num_bits ? take(&job->reader, num_bits) : 0, num_bits);
        if (!symbol) return;
    }
}

/* The source's restart marker with this number; 0 if something else is there. */
static int pass_marker(transcoder *job, int number) {
    bit_reader *reader = &job->reader;
    fill(reader);
    if (reader->count >= 8 || reader->end - reader->at < 2) return 0;
    if (reader->at[0] != 0xFF || reader->at[1] != number) return 0;
    reader->at += 2;
    reader->count = 0;
    memset(job->read_dc, 0, sizeof job->read_dc);
    return 1;
}

static void put_marker(transcoder *job, int64_t done) {
    if (job->writer) {
        finish_byte(job->writer);
        put_byte(job->writer, 0xFF);
        put_byte(job->writer, MARKER_RST0 + (int)((done / job->interval - 1) & 7));
    }
    memset(job->written_dc, 0, sizeof job->written_dc);
}

static int transcode(transcoder *job) {
    const jpeg *image = job->image;
    int64_t total = (int64_t)image->per_row * image->num_rows;
    job->reader = (bit_reader){image->data + image->scan, image->data + image->size, 0, 0, 0};
    memset(job->read_dc, 0, sizeof job->read_dc);
    memset(job->written_dc, 0, sizeof job->written_dc);
    for (int64_t done = 0; done < total; done++) {
        if (done && image->interval && done % image->interval == 0)
            if (!pass_marker(job, MARKER_RST0 + (int)((done / image->interval - 1) & 7))) return 0;
        if (done && done % job->interval == 0) put_marker(job, done);
        for (int c = 0; c < image->num_components; c++)
            for (int n = image->components[c].across * image->components[c].down; n > 0; n--) transcode_block(job, c);
        if (job->reader.is_damaged) return 0;
    }
    return pass_marker(job, MARKER_EOI);
}

static void put_bytes(bit_writer *writer, const uint8_t *bytes, size_t num) {
    for (size_t n = 0; n < num && !writer->is_full; n++) put_byte(writer, bytes[n]);
}

static void put_segment_start(bit_writer *writer, int marker, int length) {
    uint8_t start[4] = {0xFF, (uint8_t)marker, (uint8_t)(length >> 8), (uint8_t)length};
    put_bytes(writer, start, sizeof start);
}

static void put_table(transcoder *job, int class, int number) {
    huffman_table table;
    uint64_t any = 0;
    for (int n = 0; n < 256; n++) any |= job->counts[class][number][n];
    if (!any) return;
    optimal_table(job->counts[class][number], &table);
    make_encoding_table(&table, &job->encoding[class][number]);
    put_segment_start(job->writer, MARKER_DHT, 19 + table.num_symbols);
    put_byte(job->writer, class << 4 | number);
    put_bytes(job->writer, table.counts + 1, 16);
    put_bytes(job->writer, table.symbols, (size_t)table.num_symbols);
}

/* All segments of the source but its Huffman tables and interval, which are replaced. */
static void put_header(transcoder *job) {
    const jpeg *image = job->image;
    size_t place = 2;
    segment found;
    put_bytes(job->writer, image->data, 2);
    while (place < image->scan && next_segment(image, &place, &found)) {
        if (found.marker == MARKER_DHT || found.marker == MARKER_DRI) continue;
        if (found.marker == MARKER_SOS) {
            for (int table = 0; table < 8; table++) put_table(job, table & 1, table >> 1);
            put_segment_start(job->writer, MARKER_DRI, 4);
            put_byte(job->writer, job->interval >> 8);
            put_byte(job->writer, job->interval & 255);
        }
        put_bytes(job->writer, image->data + found.start, found.end - found.start);
    }
}

int add_restarts(const jpeg *image, int interval, uint8_t **out, size_t *out_size) {
    bit_writer writer = {0};
    transcoder *job = calloc(1, sizeof *job);
    if (!job) return -1;
    job->image = image;
    job->interval = interval;
    int sound = 1;
    for (int table = 0; table < 8; table++)
        sound &= make_decoding_table(&image->tables[table & 1][table >> 1], &job->decoding[table & 1][table >> 1]);
    sound = sound && transcode(job);
    if (sound) {
        job->writer = &writer;
        put_header(job);
        sound = transcode(job);
        finish_byte(&writer);
        put_byte(&writer, 0xFF);
        put_byte(&writer, MARKER_EOI);
    }
    free(job);
    if (!sound || writer.is_full) {
        free(writer.bytes);
        return writer.is_full ? -1 : 0;
    }
    *out = writer.bytes;
    *out_size = writer.size;
    return 1;
}
