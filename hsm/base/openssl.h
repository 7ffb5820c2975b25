/* Releases of OpenSSL's objects, for OWNED of scope.h: each takes a pointer to the local and
 * accepts NULL in it. */
#ifndef HSM_BASE_OPENSSL_H
#define HSM_BASE_OPENSSL_H

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <openssl/x509.h>

#define OPENSSL_RELEASE(name, type, release)    \
    static inline void name##_free(type **held) \
    {                                           \
        release(*held);                         \
    }

OPENSSL_RELEASE(bio, BIO, BIO_free_all)
OPENSSL_RELEASE(bn, BIGNUM, BN_free)
OPENSSL_RELEASE(ec_group, EC_GROUP, EC_GROUP_free)
OPENSSL_RELEASE(ecdsa_sig, ECDSA_SIG, ECDSA_SIG_free)
OPENSSL_RELEASE(md, EVP_MD, EVP_MD_free)
OPENSSL_RELEASE(md_ctx, EVP_MD_CTX, EVP_MD_CTX_free)
OPENSSL_RELEASE(params, OSSL_PARAM, OSSL_PARAM_free)
OPENSSL_RELEASE(params_builder, OSSL_PARAM_BLD, OSSL_PARAM_BLD_free)
OPENSSL_RELEASE(pkcs8, PKCS8_PRIV_KEY_INFO, PKCS8_PRIV_KEY_INFO_free)
OPENSSL_RELEASE(pkey, EVP_PKEY, EVP_PKEY_free)
OPENSSL_RELEASE(pkey_ctx, EVP_PKEY_CTX, EVP_PKEY_CTX_free)
OPENSSL_RELEASE(x509, X509, X509_free)
OPENSSL_RELEASE(der, unsigned char, OPENSSL_free) /* the bytes that i2d functions return */

#endif
