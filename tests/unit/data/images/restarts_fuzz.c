/* Damages JPEGs at random and gives them to the C extension's functions, built with sanitizers by the test beside it.
 *
 * restarts_fuzz ROUNDS FILE...   prints how many files were cut and how many got markers
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

static uint64_t state = 88172645463325252ULL;
static long num_cut, num_marked;

static size_t below(size_t limit) { /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state % limit);
}

static void check(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void try_cut(const jpeg *image) {
    box wanted = {(int)below(700) - 100, (int)below(700) - 100, (int)below(600) + 1, (int)below(600) + 1};
    cut_plan plan;
    if (below(50) == 0) wanted.top = wanted.height = 0x7fffffff;
    if (!plan_cut(image, wanted, &plan)) return;
    uint8_t *out = malloc(plan.size);
    jpeg made;
    write_cut(image, &plan, out);
    check(read_header(&made, out, plan.size), "a cut has a damaged header");
    num_cut++;
    free(out);
    free(plan.starts);
}

static void try_markers(const jpeg *image) {
    uint8_t *out;
    size_t size;
    jpeg made;
    cut_plan plan;
    box corner = {0, 0, 1, 1};
    int interval = best_interval(image);
    if (!interval || add_restarts(image, interval, &out, &size) != 1) return;
    check(read_header(&made, out, size), "a file with markers has a damaged header");
    check(plan_cut(&made, corner, &plan), "a file with markers cannot be cut");
    num_marked++;
    free(plan.starts);
    free(out);
}

static void try_all(const uint8_t *data, size_t size) {
    uint8_t *exact = malloc(size ? size : 1); /* of exactly this size, so that a byte too far is noticed */
    jpeg image;
    memcpy(exact, data, size);
    if (read_header(&image, exact, size)) {
        try_cut(&image);
        try_markers(&image);
    }
    free(exact);
}

static size_t damage(uint8_t *data, size_t size, size_t capacity) {
    size_t place = below(below(2) || size < 700 ? size : 700), length = below(40);
    switch (below(6)) {
        case 0: data[place] = (uint8_t)below(256); break;
        case 1: data[place] ^= (uint8_t)(1 << below(8)); break;
        case 2: data[place] = 0xFF; break;
        case 3: return place + 1;
        case 4:
            if (place + length >= size) break;
            memmove(data + place, data + place + length, size - place - length);
            return size - length;
        default:
            if (size + length > capacity) break;
            memmove(data + place + length, data + place, size - place);
            return size + length;
    }
    return size;
}

int main(int argc, char **argv) {
    for (int n = 2; n < argc; n++) {
        static uint8_t data[1 << 20], damaged[1 << 20];
        FILE *file = fopen(argv[n], "rb");
        check(file != NULL, "no such file");
        size_t size = fread(data, 1, sizeof data / 2, file);
        fclose(file);
        try_all(data, size);
        for (int round = atoi(argv[1]); round > 0; round--) {
            size_t left = size;
            memcpy(damaged, data, size);
            for (size_t times = 1 + below(4); times > 0; times--) left = damage(damaged, left, sizeof damaged);
            try_all(damaged, left);
        }
    }
    printf("%ld %ld\n", num_cut, num_marked);
    return 0;
}
