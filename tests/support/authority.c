/* Keys and certificates by OpenSSL, as authority.h promises them. */
#include "tests/support/authority.h"

#include <stdlib.h>
#include <string.h>

#include <openssl/x509.h>

EVP_PKEY *authority_key(const char *kind)
{
    if (strncmp(kind, "RSA-", 4) == 0)
        return EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)atoi(kind + 4));
    if (strstr(kind, "25519"))
        return EVP_PKEY_Q_keygen(NULL, NULL, kind);
    return EVP_PKEY_Q_keygen(NULL, NULL, "EC", kind);
}

static struct authority authority_take(unsigned char *der, int length)
{
    struct authority made = {.length = (size_t)length};

    if (length <= 0 || made.length > sizeof made.bytes)
        abort();
    memcpy(made.bytes, der, made.length);
    OPENSSL_free(der);
    return made;
}

struct authority authority_pkix(const EVP_PKEY *key)
{
    unsigned char *der = NULL;
    int length = i2d_PUBKEY(key, &der);

    return authority_take(der, length);
}

struct authority authority_certificate(EVP_PKEY *key, long serial)
{
    EVP_PKEY *signer = authority_key("P-256");
    X509 *certificate = X509_new();
    X509_NAME *name;
    unsigned char *der = NULL;
    int length;

    if (!signer || !certificate)
        abort();
    name = X509_get_subject_name(certificate);
    (void)X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const uint8_t *)"ca", -1, -1, 0);
    (void)X509_set_version(certificate, X509_VERSION_3);
    (void)ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial);
    (void)X509_set_issuer_name(certificate, name);
    (void)X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    (void)X509_gmtime_adj(X509_getm_notAfter(certificate), 86400);
    (void)X509_set_pubkey(certificate, key);
    (void)X509_sign(certificate, signer, EVP_sha256());
    length = i2d_X509(certificate, &der);
    X509_free(certificate);
    EVP_PKEY_free(signer);
    return authority_take(der, length);
}

struct authority authority_new_pkix(const char *kind)
{
    EVP_PKEY *key = authority_key(kind);
    struct authority made = authority_pkix(key);

    EVP_PKEY_free(key);
    return made;
}

struct authority authority_new_certificate(const char *kind, long serial)
{
    EVP_PKEY *key = authority_key(kind);
    struct authority made = authority_certificate(key, serial);

    EVP_PKEY_free(key);
    return made;
}
