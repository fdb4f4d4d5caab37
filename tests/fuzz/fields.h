/* Damage aimed at one field: every field of the files and tables that another process may have damaged, by its
 * position. */
#ifndef FUZZ_FIELDS_H
#define FUZZ_FIELDS_H

#include "fuzz.h"

typedef struct fuzz_field {
    uint64_t table, stride,
        inner; /* offset of the first entry; bytes of an entry; bytes of one of several parts within it */
    uint32_t entries, offset, width;
} fuzz_field;

#define FIELD(table, type, entries, member)                                                                            \
    {table, sizeof(type), 0, entries, offsetof(type, member), sizeof(((type *)0)->member)}
#define HEADER(member) FIELD(0, cl_header, 1, member)
#define CONTROL(member) FIELD(CL_OFF_CONTROL, cl_control, 1, member)
#define OWNER(member) FIELD(CL_OFF_OWNERS, cl_owner, 4, member)
#define NAME(member) FIELD(CL_OFF_NAMES, cl_name, 4, member)
#define HOLD(member) FIELD(CL_OFF_HOLDS, cl_hold, 32, member)
#define SEGMENT(member) FIELD(CL_OFF_SEGMENTS, cl_segment, 8, member)
#define BLOCK(member)                                                                                                  \
    {CL_OFF_SEGMENTS + offsetof(cl_segment, blocks),                                                                   \
     sizeof(cl_segment),                                                                                               \
     sizeof(cl_block),                                                                                                 \
     8,                                                                                                                \
     offsetof(cl_block, member),                                                                                       \
     sizeof(((cl_block *)0)->member)}

/* The first ones are those of a header, of a registry or of a segment. seeds.py reads these lines: one field each. */
static const fuzz_field fuzz_fields[] = {
    HEADER(magic),
    HEADER(layout),
    HEADER(kind),
    HEADER(id),
    HEADER(file_size),
    HEADER(host),
    HEADER(boot),
    HEADER(live_device),
    HEADER(live_inode),
    HEADER(class_index),
    HEADER(block_size),
    HEADER(nblocks),
    HEADER(format),
    HEADER(checksum),
    CONTROL(guard),
    CONTROL(lock),
    CONTROL(removed),
    CONTROL(owners_high),
    CONTROL(segments_high),
    CONTROL(holds_high),
    CONTROL(names_high),
    CONTROL(segments_free),
    CONTROL(holds_free),
    CONTROL(names_free),
    CONTROL(messages),
    CONTROL(persistent),
    CONTROL(total_bytes),
    CONTROL(warm_bytes),
    CONTROL(scanned_ns),
    CONTROL(scan_cost_ns),
    CONTROL(sweeping),
    CONTROL(marks_high),
    CONTROL(marks_free),
    CONTROL(first[0]),
    CONTROL(first[3]),
    CONTROL(first[CL_LARGE]),
    CONTROL(first[CL_SPILLED]),
    CONTROL(last[3]),
    CONTROL(last[CL_LARGE]),
    CONTROL(last[CL_SPILLED]),
    CONTROL(beside[CL_TABLE_HOLDS]),
    CONTROL(paged[CL_TABLE_HOLDS]),
    CONTROL(books),
    CONTROL(journal.committed),
    CONTROL(journal.writes[0].offset),
    CONTROL(guard_end),
    OWNER(state),
    OWNER(incarnation),
    OWNER(family),
    OWNER(leaving),
    OWNER(epoch),
    OWNER(first_hold),
    OWNER(first_estate),
    OWNER(heir_of),
    OWNER(heir_epoch),
    OWNER(children),
    OWNER(unregistered),
    OWNER(stage),
    OWNER(sweep),
    OWNER(look),
    OWNER(marks[0]),
    NAME(kind),
    NAME(next),
    NAME(block),
    NAME(length),
    NAME(hash),
    NAME(generation),
    NAME(spec_offset),
    NAME(spec_length),
    NAME(device),
    NAME(inode),
    NAME(hold),
    HOLD(kind),
    HOLD(owner),
    HOLD(block),
    HOLD(next),
    HOLD(prev),
    HOLD(channel),
    HOLD(nonce),
    HOLD(deadline_ns),
    HOLD(from),
    HOLD(until),
    HOLD(family),
    HOLD(parent_start),
    HOLD(parent_pid),
    HOLD(pid_namespace),
    SEGMENT(id),
    SEGMENT(file_size),
    SEGMENT(block_size),
    SEGMENT(inode),
    SEGMENT(idle_since_ns),
    SEGMENT(state),
    SEGMENT(owner),
    SEGMENT(nblocks),
    SEGMENT(used),
    SEGMENT(class_index),
    SEGMENT(next),
    BLOCK(generation),
    BLOCK(nbytes),
    BLOCK(state),
    BLOCK(holds),
    BLOCK(next),
    BLOCK(prev),
    BLOCK(name),
    BLOCK(children),
    BLOCK(first_child),
};
#define FUZZ_FIELDS (sizeof fuzz_fields / sizeof *fuzz_fields)
#define FUZZ_HEADER_FIELDS 14u
#define FUZZ_HOLD_FIELDS 72u /* the fields of a hold and those after */

/* Values that such a field could be mistaken for: limits, and the values next to them. seeds.py reads this list too. */
static const uint64_t fuzz_values[] = {
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    CL_BLOCKS,
    CL_BLOCKS + 1,
    CL_BLOCKS * 2 + 1,
    256,
    257,
    CL_PAGE,
    CL_CARETAKER,
    CL_MAX_OWNERS,
    CL_MAX_OWNERS + 1,
    CL_MAX_NAMES,
    CL_MAX_NAMES + 1,
    CL_MAX_SEGMENTS,
    CL_MAX_SEGMENTS * CL_BLOCKS + 1,
    CL_MAX_HOLDS,
    CL_MAX_HOLDS + 1,
    UINT32_MAX,
    INT64_MAX,
    UINT64_MAX,
};
#define FUZZ_VALUES (sizeof fuzz_values / sizeof *fuzz_values)

/* It becomes one of these values, or a little more or less than it was, or small. */
static inline void fuzz_damage_field(const fuzz_field *f, uint8_t *at, uint8_t how)
{
    uint64_t word = 0;
    at += f->offset;
    memcpy(&word, at, f->width);
    if (how < FUZZ_VALUES) {
        word = fuzz_values[how];
    } else if (how < 64) {
        word += (uint64_t)how - 48;
    } else {
        word = how - 64u;
    }
    memcpy(at, &word, f->width);
}

/* One of the first fields, up to this number, of the object at `base`. */
static inline void fuzz_damage(fuzz_input *in, uint8_t *base, size_t fields)
{
    const fuzz_field *f = &fuzz_fields[fuzz_8(in) % fields];
    uint8_t entry = fuzz_8(in), how = fuzz_8(in);
    fuzz_damage_field(f, base + f->table + f->stride * (entry % f->entries) + f->inner * (entry / f->entries), how);
}

/* One field of this block, of its segment, or of a hold. */
static inline void fuzz_damage_block(fuzz_input *in, uint8_t *base, uint32_t number, uint32_t hold)
{
    const fuzz_field *f = &fuzz_fields[FUZZ_HOLD_FIELDS + fuzz_8(in) % (FUZZ_FIELDS - FUZZ_HOLD_FIELDS)];
    uint8_t *at = base + f->table;
    if (f->table == CL_OFF_HOLDS) {
        at += hold % CL_MAX_HOLDS * f->stride;
    } else {
        at += number / CL_BLOCKS % CL_MAX_SEGMENTS * f->stride + f->inner * (number % CL_BLOCKS);
    }
    fuzz_damage_field(f, at, fuzz_8(in));
}

#endif
