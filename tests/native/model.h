/* An explicit-state model checker: it visits and checks every reachable state once. A model gives the type of a
 * state, a start state, and the steps of each process. A step is one store or one load that other processes can
 * observe. */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct model_set {
    uint8_t *states; /* all that were found, one after the other */
    uint32_t *table; /* index + 1 of each state, by hash */
    size_t size, n, room, buckets;
} model_set;

static uint64_t model_hash(const uint8_t *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 0x100000001b3u;
    }
    return h ^ h >> 29;
}

static void model_grow(model_set *s)
{
    s->buckets = s->buckets ? s->buckets * 2 : 1 << 16;
    free(s->table);
    s->table = calloc(s->buckets, sizeof *s->table);
    if (s->table == NULL) {
        abort();
    }
    for (size_t i = 0; i < s->n; i++) {
        size_t at = model_hash(s->states + i * s->size, s->size) & (s->buckets - 1);
        while (s->table[at] != 0) {
            at = (at + 1) & (s->buckets - 1);
        }
        s->table[at] = (uint32_t)i + 1;
    }
}

/* Whether the state is new. */
static int model_add(model_set *s, const void *state)
{
    if (s->n * 2 >= s->buckets) {
        model_grow(s);
    }
    size_t at = model_hash(state, s->size) & (s->buckets - 1);
    while (s->table[at] != 0) {
        if (memcmp(s->states + (s->table[at] - 1) * s->size, state, s->size) == 0) {
            return 0;
        }
        at = (at + 1) & (s->buckets - 1);
    }
    if (s->n == s->room) {
        s->room = s->room ? s->room * 2 : 1 << 16;
        s->states = realloc(s->states, s->room * s->size);
        if (s->states == NULL) {
            abort();
        }
    }
    memcpy(s->states + s->n * s->size, state, s->size);
    s->n++;
    s->table[at] = (uint32_t)s->n;
    return 1;
}

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            show(s);                                                                                                   \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
