package tokens

import (
	"fmt"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/scene"
)

const nssModule = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"

// newNSS is a database of which NSS hears by module_args alone. It says of no key that it made it.
func newNSS(t *testing.T) *token {
	t.Helper()
	installed(t, nssModule, "certutil")
	dir := t.TempDir()
	scene.Write(t, dir+"/pin", "12345678\n")
	run(t, nil, "certutil", "-N", "-d", "sql:"+dir, "-f", dir+"/pin")
	return &token{
		Setting: scene.Setting{Data: fmt.Sprintf("module = %q\nmodule_args = \"configdir='sql:%s' dbTokenDescription='spire'\"\n"+
			"token = \"pkcs11:token=spire\"\npin_file = \"%s/pin\"\nkey_identifier_file = \"%s/hsm-id\"\n"+
			"attribute_check = \"lenient\"\nmax_sessions = 1\ndestroy_superseded_after = 0\n", nssModule, dir, dir, dir)},
		keys: map[string]keymanagerv1.KeyType{"x509-CA-A": p256, "JWT-Signer-A": rsa2048, "x509-CA-B": p384}}
}

func TestNSS(t *testing.T) { newNSS(t).lives(t, 2) }
