/* Checks a message's bytes before protobuf-c reads them: depth, number of fields, and text that is
 * UTF-8 without NUL. */
#include "plugin/rpc/message.h"

#include <stdlib.h>

#include "hsm/base/scope.h"
#include "hsm/base/utf8.h"

/* Everything that SPIRE sends is far below these limits. They bound the stack and heap that a
 * hostile 4 MiB can make protobuf-c use: it recurses without a limit, and allocates 130 bytes for a
 * field of two. */
enum {
    DEPTH_MAX = 16,
    FIELDS_MAX = 65536,
};

enum wire_type { WIRE_VARINT = 0, WIRE_64BIT = 1, WIRE_BYTES = 2, WIRE_32BIT = 5 };

struct wire_reader {
    const uint8_t *at;
    const uint8_t *end;
};

static size_t left(const struct wire_reader *reader)
{
    return (size_t)(reader->end - reader->at);
}

static int read_varint(struct wire_reader *reader, uint64_t *value)
{
    uint64_t result = 0;

    for (unsigned shift = 0; shift < 70 && reader->at < reader->end; shift += 7) {
        uint8_t byte = *reader->at++;

        if (shift < 64)
            result |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *value = result;
            return 0;
        }
    }
    return -1;
}

static int skip(struct wire_reader *reader, uint64_t count)
{
    if (count > left(reader))
        return -1;
    reader->at += count;
    return 0;
}

/* A field's content. For WIRE_BYTES its length says how much; other types are skipped. */
static int read_content(struct wire_reader *reader, unsigned wire_type, struct wire_reader *content)
{
    uint64_t value;

    content->at = reader->at;
    switch (wire_type) {
    case WIRE_VARINT:
        return read_varint(reader, &value);
    case WIRE_64BIT:
        return skip(reader, 8);
    case WIRE_32BIT:
        return skip(reader, 4);
    case WIRE_BYTES:
        if (read_varint(reader, &value) != 0 || value > left(reader))
            return -1;
        content->at = reader->at;
        content->end = reader->at + value;
        return skip(reader, value);
    default:
        return -1;
    }
}

static int malformed(const ProtobufCMessageDescriptor *type, struct fault *fault)
{
    return fault_set(fault, FAULT_INVALID_ARGUMENT, "malformed request: not a valid %s",
                     type->short_name);
}

static int check_string(const ProtobufCMessageDescriptor *type,
                        const ProtobufCFieldDescriptor *field, const struct wire_reader *content,
                        struct fault *fault)
{
    if (utf8_is_text((const char *)content->at, left(content)))
        return 0;
    return fault_set(fault, FAULT_INVALID_ARGUMENT,
                     "malformed request: %s in %s is not text (it contains a NUL, or is not UTF-8)",
                     field->name, type->short_name);
}

/* The use of DEPTH_MAX and FIELDS_MAX so far. */
struct budget {
    unsigned depth;
    unsigned fields;
};

/* protobuf-c's strings end at their first NUL, so "a\0b" would become the key id "a";
 * only the wire still shows it. */
static int check_fields(const ProtobufCMessageDescriptor *type, struct wire_reader reader,
                        struct budget *used, struct fault *fault)
{
    if (++used->depth > DEPTH_MAX)
        return malformed(type, fault);
    while (reader.at < reader.end) {
        const ProtobufCFieldDescriptor *field;
        struct wire_reader content;
        uint64_t tag;
        int result = 0;

        if (++used->fields > FIELDS_MAX || read_varint(&reader, &tag) != 0 || tag > UINT32_MAX ||
            read_content(&reader, (unsigned)(tag & 7), &content) != 0)
            return malformed(type, fault);
        field = (tag & 7) == WIRE_BYTES
                    ? protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3))
                    : NULL;
        if (field && field->type == PROTOBUF_C_TYPE_STRING)
            result = check_string(type, field, &content, fault);
        else if (field && field->type == PROTOBUF_C_TYPE_MESSAGE)
            result = check_fields(field->descriptor, content, used, fault);
        if (result != 0)
            return -1;
    }
    used->depth--;
    return 0;
}

void *message_parse(const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t length,
                    struct fault *fault)
{
    struct wire_reader reader = {bytes, bytes + length};
    struct budget used = {0};
    ProtobufCMessage *message;

    if (check_fields(type, reader, &used, fault) != 0)
        return NULL;
    message = protobuf_c_message_unpack(type, NULL, length, bytes);
    if (!message)
        (void)malformed(type, fault);
    return message;
}

void message_free(void *message)
{
    protobuf_c_message_free_unpacked(message, NULL);
}

void message_scope_free(void *message)
{
    message_free(*(void **)message);
}

void message_reply(struct rpc_call *call, const ProtobufCMessage *message)
{
    size_t length = protobuf_c_message_get_packed_size(message);
    OWNED(scope_free) uint8_t *bytes = malloc(length > 0 ? length : 1);
    struct fault fault;

    if (!bytes) {
        (void)fault_set(&fault, FAULT_RESOURCE_EXHAUSTED, "out of memory");
        rpc_fail(call, &fault);
        return;
    }
    (void)protobuf_c_message_pack(message, bytes);
    rpc_reply(call, bytes, length);
}
