/* Cuts the restart intervals that a box touches out of a JPEG: a smaller JPEG with the same pixels there.
 *
 * An interval can be decoded without those before it. The header gets the smaller size, and the markers new numbers.
 * The result is only as wide as needed if the interval divides a row of MCUs.
 */
#include "jpeg.h"

#include <stdlib.h>
#include <string.h>

/* Segments that determine the pixels: of the APPn, only JFIF's and Adobe's, which name the colour space. */
static int is_kept(const jpeg *image, const segment *one) {
    const uint8_t *body = image->data + one->start + 4;
    size_t length = one->end - one->start - 4;
    if (one->marker == MARKER_APP0) return length >= 5 && !memcmp(body, "JFIF", 5);
    if (one->marker == MARKER_APP14) return length >= 5 && !memcmp(body, "Adobe", 5);
    return one->marker != MARKER_COM && (one->marker < MARKER_APP0 || one->marker > MARKER_APP15);
}

static size_t header_size(const jpeg *image) {
    size_t place = 2, total = 2;
    segment found;
    while (place < image->scan && next_segment(image, &place, &found))
        if (is_kept(image, &found)) total += found.end - found.start;
    return total;
}

/* Finds the first byte of each of the intervals; 0 if their markers are not exactly those of an undamaged file. */
static int find_intervals(const jpeg *image, size_t *starts, size_t num) {
    const uint8_t *at = image->data + image->scan, *end = image->data + image->size;
    size_t found = 1;
    starts[0] = image->scan;
    while ((at = memchr(at, 0xFF, (size_t)(end - at))) != NULL && end - at >= 2) {
        int marker = at[1];
        at += 2;
        if (marker == 0) continue;
        size_t after = (size_t)(at - image->data);
        if (marker == MARKER_EOI) {
            starts[num] = after;
            return found == num;
        }
        if (found == num || marker != MARKER_RST0 + (int)((found - 1) & 7)) return 0;
        starts[found++] = after;
    }
    return 0;
}

static int clamp(int64_t value, int most) { return value < 0 ? 0 : value > most ? most : (int)value; }

static int choose(const jpeg *image, box wanted, cut_plan *plan) {
    int group_width = image->interval * image->mcu_width;
    plan->groups = (size_t)(image->per_row / image->interval);
    plan->first_row = clamp(wanted.top, image->height - 1) / image->mcu_height;
    plan->last_row = clamp((int64_t)wanted.top + wanted.height - 1, image->height - 1) / image->mcu_height;
    plan->first_group = clamp(wanted.left, image->width - 1) / group_width;
    plan->last_group = clamp((int64_t)wanted.left + wanted.width - 1, image->width - 1) / group_width;
    plan->top = plan->first_row * image->mcu_height;
    plan->left = plan->first_group * group_width;
    int64_t touched = (int64_t)(plan->last_row - plan->first_row + 1) * (plan->last_group - plan->first_group + 1);
    return 8 * touched <= 7 * (int64_t)plan->groups * image->num_rows; /* else cutting saves nothing */
}

static size_t row_size(const cut_plan *plan, int row) {
    const size_t *of_row = plan->starts + (size_t)row * plan->groups;
    return of_row[plan->last_group + 1] - of_row[plan->first_group]; /* with the marker after each interval */
}

int plan_cut(const jpeg *image, box wanted, cut_plan *plan) {
    plan->starts = NULL;
    if (!image->interval || image->per_row % image->interval || wanted.height < 1 || wanted.width < 1) return 0;
    if (!choose(image, wanted, plan)) return 0;
    size_t num = plan->groups * (size_t)image->num_rows;
    if (num > image->size / 2) return 0; /* each interval has a marker */
    plan->starts = malloc((num + 1) * sizeof *plan->starts);
    if (!plan->starts) return 0;
    if (!find_intervals(image, plan->starts, num)) {
        free(plan->starts);
        plan->starts = NULL;
        return 0;
    }
    plan->size = header_size(image);
    for (int row = plan->first_row; row <= plan->last_row; row++) plan->size += row_size(plan, row);
    return 1;
}

static void put_size(uint8_t *frame, int height, int width) {
    frame[5] = (uint8_t)(height >> 8);
    frame[6] = (uint8_t)height;
    frame[7] = (uint8_t)(width >> 8);
    frame[8] = (uint8_t)width;
}

static uint8_t *write_header(const jpeg *image, const cut_plan *plan, uint8_t *out) {
    int rest_height = image->height - plan->top, rest_width = image->width - plan->left;
    int height = (plan->last_row - plan->first_row + 1) * image->mcu_height;
    int width = (plan->last_group - plan->first_group + 1) * image->interval * image->mcu_width;
    size_t place = 2;
    segment found;
    memcpy(out, image->data, 2);
    out += 2;
    while (place < image->scan && next_segment(image, &place, &found)) {
        if (!is_kept(image, &found)) continue;
        memcpy(out, image->data + found.start, found.end - found.start);
        if (found.start == image->frame)
            put_size(out, height < rest_height ? height : rest_height, width < rest_width ? width : rest_width);
        out += found.end - found.start;
    }
    return out;
}

void write_cut(const jpeg *image, const cut_plan *plan, uint8_t *out) {
    int number = 0;
    out = write_header(image, plan, out);
    for (int row = plan->first_row; row <= plan->last_row; row++) {
        const size_t *starts = plan->starts + (size_t)row * plan->groups;
        size_t start = starts[plan->first_group];
        memcpy(out, image->data + start, row_size(plan, row));
        for (int group = plan->first_group; group <= plan->last_group; group++) {
            uint8_t *marker = out + (starts[group + 1] - start) - 2;
            marker[0] = 0xFF;
            marker[1] = (uint8_t)(MARKER_RST0 + (number++ & 7));
        }
        out += row_size(plan, row);
    }
    out[-1] = MARKER_EOI;
}
