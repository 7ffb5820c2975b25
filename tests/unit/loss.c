/* What a refused start says can be acted on: it has the code, however much else it names. */
#include "plugin/keys/loss.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "hsm/base/fault.h"

static void assert_has(const struct fault *fault, const char *text)
{
    if (!strstr(fault->message, text))
        fail_msg("\"%s\" does not say \"%s\"", fault->message, text);
}

static void assert_has_the_code(const struct fault *fault)
{
    assert_has(fault, "accept_loss = \"0123abcd\"");
    assert_has(fault, "spire-hsm accept 0123abcd");
}

/* The longest that a token calls itself. */
static struct hsm_token_info token(void)
{
    struct hsm_token_info info = {.model = ""};

    memset(info.label, 'L', sizeof info.label - 1);
    memset(info.serial, 'S', sizeof info.serial - 1);
    return info;
}

static void a_refusal_has_its_code_however_many_keys_it_names(void **state)
{
    const struct hsm_token_info info = token();

    (void)state;
    for (unsigned count = 1; count <= 8; count++) {
        char names[1024] = "";
        struct fault fault = {0};

        for (unsigned i = 0; i < count; i++) {
            struct record_key key = {.state = RECORD_SERVED};

            (void)snprintf(key.label.key_id, sizeof key.label.key_id, "x509-CA-%u", i);
            (void)snprintf(key.name.label, sizeof key.name.label, "sp1-01234567abcdefgh-1pdh1j-%s",
                           key.label.key_id);
            loss_add_name(&key, names, sizeof names);
        }
        assert_int_equal(loss_refuse(names, &info, "0123abcd", &fault), -1);
        assert_has(&fault, "key \"x509-CA-0\"");
        assert_has(&fault, "but SPIRE needs it");
        assert_has_the_code(&fault);
    }
}

static void so_has_one_for_a_record_of_another_server_wherever_it_is(void **state)
{
    struct config_keymanager config = {.max_sessions = 1};
    struct fault fault = {0};

    (void)state;
    memset(config.place.key_identifier_file, 'i', sizeof config.place.key_identifier_file - 1);
    memset(config.record_file, 'r', sizeof config.record_file - 1);
    assert_int_equal(loss_refuse_anothers(&config, "0123abcd", &fault), -1);
    assert_has(&fault, "record_file is another server's");
    assert_has_the_code(&fault);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refusal_has_its_code_however_many_keys_it_names),
        cmocka_unit_test(so_has_one_for_a_record_of_another_server_wherever_it_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
