/* What a token answers, and is passed on: a raw signature (the first byte: 0 to 3, its key's
 * type), or the padded text of a CK_TOKEN_INFO. What becomes of it must be well-formed. */
#include "hsm/sign.h"

#include <stdlib.h>
#include <string.h>

#include "hsm/base/utf8.h"
#include "hsm/module.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* SEQUENCE of two INTEGERs, each positive and without a needless zero in front. */
static bool is_minimal_der(const uint8_t *der, size_t length)
{
    size_t at = 2;

    if (length < 8 || der[0] != 0x30 || der[1] != length - 2)
        return false;
    for (int i = 0; i < 2; i++) {
        const uint8_t *number = der + at;

        if (at + 2 > length || number[0] != 0x02 || number[1] == 0 || at + 2 + number[1] > length ||
            (number[2] & 0x80) != 0 || (number[1] > 1 && number[2] == 0 && (number[3] & 0x80) == 0))
            return false;
        at += 2U + number[1];
    }
    return at == length;
}

static void take_signature(enum hsm_key_type type, const uint8_t *raw, size_t length)
{
    struct hsm_request request = {
        .op = HSM_SIGN, .type = type, .hash = HSM_SHA256, .digest_length = 32};
    bool rsa = type == HSM_RSA_2048 || type == HSM_RSA_4096;
    struct hsm_reply reply = {0};
    struct sign_plan plan;
    struct fault fault;

    if (sign_plan(&request, &plan, &fault) != 0)
        abort();
    if (sign_result(&request, &plan, raw, length, &reply, &fault) != 0)
        return;
    if (rsa ? reply.signature_length != length || memcmp(reply.signature, raw, length) != 0
            : !is_minimal_der(reply.signature, reply.signature_length))
        abort();
}

static void take_text(const uint8_t *padded, size_t length)
{
    char *text = malloc(length + 1);

    if (!text)
        return;
    module_text(padded, length, text);
    if (strlen(text) > length || !utf8_is_text(text, strlen(text)))
        abort();
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] < HSM_RSA_4096)
        take_signature((enum hsm_key_type)(data[0] + 1), data + 1, size - 1);
    else
        take_text(data + 1, size - 1);
    return 0;
}
