/* Huffman tables of JPEG: decoding, encoding, and the optimal table for given counts. Source: ITU-T T.81, annexes C, F, K. */
#include "jpeg.h"

#include <string.h>

/* 0: more codes than their lengths allow. */
int make_decoding_table(const huffman_table *table, decoding_table *made) {
    int32_t code = 0;
    int index = 0;
    memset(made, 0, sizeof *made);
    made->symbols = table->symbols;
    for (int bits = 1; bits <= 16; bits++, code <<= 1) {
        made->offsets[bits] = index - code;
        for (int n = 0; n < table->counts[bits]; n++, code++, index++) {
            if (code >= (1 << bits)) return 0;
            for (int rest = 0; bits <= 8 && rest < 1 << (8 - bits); rest++)
                made->quick[(code << (8 - bits)) + rest] = (uint16_t)(bits << 8 | table->symbols[index]);
        }
        made->largest[bits] = table->counts[bits] ? code - 1 : -1;
    }
    return 1;
}

void make_encoding_table(const huffman_table *table, encoding_table *made) {
    int code = 0, index = 0;
    memset(made, 0, sizeof *made);
    for (int bits = 1; bits <= 16; bits++, code <<= 1)
        for (int n = 0; n < table->counts[bits]; n++, code++, index++) {
            made->codes[table->symbols[index]] = (uint16_t)code;
            made->lengths[table->symbols[index]] = (uint8_t)bits;
        }
}

/* T.81, figure K.1: lengths of the codes. Symbol 256 reserves the code of ones only, which JPEG forbids. */
static void code_lengths(const uint64_t counts[256], int lengths[257]) {
    uint64_t weights[257];
    int others[257]; /* the next symbol of the same subtree; -1: none */
    memcpy(weights, counts, 256 * sizeof *weights);
    weights[256] = 1;
    for (int n = 0; n < 257; n++) lengths[n] = 0, others[n] = -1;
    for (;;) {
        int first = -1, second = -1; /* the two smallest weights; among equal ones, the largest symbol */
        for (int n = 0; n < 257; n++)
            if (weights[n] && (first < 0 || weights[n] <= weights[first])) first = n;
        for (int n = 0; n < 257; n++)
            if (weights[n] && n != first && (second < 0 || weights[n] <= weights[second])) second = n;
        if (second < 0) return;
        weights[first] += weights[second];
        weights[second] = 0;
        int last = first;
        for (lengths[last]++; others[last] >= 0; lengths[last]++) last = others[last];
        others[last] = second;
        for (last = second; last >= 0; last = others[last]) lengths[last]++;
    }
}

void optimal_table(const uint64_t counts[256], huffman_table *made) {
    int lengths[257], of_length[258] = {0};
    code_lengths(counts, lengths);
    for (int n = 0; n < 257; n++)
        if (lengths[n]) of_length[lengths[n]]++;
    for (int bits = 257; bits > 16; bits--) /* figure K.3: no code is longer than 16 bits */
        while (of_length[bits] > 0) {
            int shorter = bits - 2;
            while (!of_length[shorter]) shorter--;
            of_length[bits] -= 2;
            of_length[bits - 1]++;
            of_length[shorter + 1] += 2;
            of_length[shorter]--;
        }
    int longest = 16;
    while (longest > 1 && !of_length[longest]) longest--;
    of_length[longest]--; /* the reserved code */
    memset(made, 0, sizeof *made);
    for (int bits = 1; bits <= 16; bits++) made->counts[bits] = (uint8_t)of_length[bits];
    for (int bits = 1; bits <= 257; bits++) /* figure K.4 */
        for (int n = 0; n < 256; n++)
            if (lengths[n] == bits) made->symbols[made->num_symbols++] = (uint8_t)n;
}
