// Package contained_test is the host in a container: tests/real/image.sh links it statically and
// runs it in a root that has the plugin image's tree and nothing else. It asks for no program
// but softhsm2-util. In an ordinary root it passes as well.
package contained_test

import (
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/softhsm"
)

func ready(t *testing.T, token *softhsm.Token) *host.Plugin {
	t.Helper()
	p := host.Start(t, host.Options{Type: "KeyManager", Env: token.Env()})
	if err := p.Configure("example.org", token.PluginData("")); err != nil {
		t.Fatal(err)
	}
	return p
}

func generate(t *testing.T, p *host.Plugin, id string, keyType keymanagerv1.KeyType) *keymanagerv1.PublicKey {
	t.Helper()
	key, err := load.Generate(p, id, keyType)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeysAreMadeAndTheirSignaturesVerified(t *testing.T) {
	p := ready(t, softhsm.New(t))
	for _, keyType := range []keymanagerv1.KeyType{keymanagerv1.KeyType_EC_P256, keymanagerv1.KeyType_EC_P384,
		keymanagerv1.KeyType_RSA_2048} {
		if err := load.Sign(p, generate(t, p, "key-"+keyType.String(), keyType)); err != nil {
			t.Errorf("%v: %v", keyType, err)
		}
	}
}

func TestKeysAreFoundAfterARestart(t *testing.T) {
	token := softhsm.New(t)
	p := ready(t, token)
	key := generate(t, p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := load.Sign(ready(t, token), key); err != nil {
		t.Error(err)
	}
}

func TestKilledWorkersAreReplaced(t *testing.T) {
	const kills = 3
	p := ready(t, softhsm.New(t))
	key := generate(t, p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
	l := load.Start(t, p, 4, key)
	l.KillWorkers(kills, 20)
	l.EndWithoutFailures()
	if ends := p.Deaths(); len(ends) != kills {
		t.Errorf("%d workers ended, %d were killed", len(ends), kills)
	}
}
