/* The four key types of SPIRE: names, sizes, mechanisms. */
#include "hsm/wire/keytype.h"

#include <p11-kit/pkcs11.h>

static const struct keytype types[] = {
    [HSM_KEY_NONE] = {.type = HSM_KEY_NONE, .name = "unknown"},
    [HSM_EC_P256] = {.type = HSM_EC_P256,
                     .name = "ec-p256",
                     .bits = 256,
                     .bytes = 32,
                     .key_type = CKK_EC,
                     .generate = CKM_EC_KEY_PAIR_GEN,
                     .sign = CKM_ECDSA,
                     .group = "prime256v1",
                     .other_names = {"secp256r1", "P-256"},
                     .parameters = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07},
                     .parameters_length = 10},
    [HSM_EC_P384] = {.type = HSM_EC_P384,
                     .name = "ec-p384",
                     .bits = 384,
                     .bytes = 48,
                     .key_type = CKK_EC,
                     .generate = CKM_EC_KEY_PAIR_GEN,
                     .sign = CKM_ECDSA,
                     .group = "secp384r1",
                     .other_names = {"P-384", "ansip384r1"},
                     .parameters = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22},
                     .parameters_length = 7},
    [HSM_RSA_2048] = {.type = HSM_RSA_2048,
                      .name = "rsa-2048",
                      .rsa = true,
                      .bits = 2048,
                      .bytes = 256,
                      .key_type = CKK_RSA,
                      .generate = CKM_RSA_PKCS_KEY_PAIR_GEN,
                      .sign = CKM_RSA_PKCS,
                      .parameters = {1, 0, 1},
                      .parameters_length = 3},
    [HSM_RSA_4096] = {.type = HSM_RSA_4096,
                      .name = "rsa-4096",
                      .rsa = true,
                      .bits = 4096,
                      .bytes = 512,
                      .key_type = CKK_RSA,
                      .generate = CKM_RSA_PKCS_KEY_PAIR_GEN,
                      .sign = CKM_RSA_PKCS,
                      .parameters = {1, 0, 1},
                      .parameters_length = 3},
};

const struct keytype *keytype_find(enum hsm_key_type type)
{
    size_t i = (size_t)type;

    return &types[i < sizeof types / sizeof types[0] ? i : HSM_KEY_NONE];
}

const char *hsm_key_type_name(enum hsm_key_type type)
{
    return keytype_find(type)->name;
}
