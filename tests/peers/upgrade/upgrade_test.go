// Package upgrade_test: keys live longer than any version of spire-hsm. Whatever a version
// has made is found and used by every later one, and by an earlier one after a rollback.
package upgrade_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

const (
	p256    = keymanagerv1.KeyType_EC_P256
	p384    = keymanagerv1.KeyType_EC_P384
	rsa2048 = keymanagerv1.KeyType_RSA_2048
)

var ctx = context.Background()

// fingerprints of keys by key id, as GetPublicKeys has them.
type fingerprints map[string]string

// load starts one version of the plugin (empty: this one) as one server on a token. An
// identity of "" is the one in the token's key_identifier_file.
func load(t *testing.T, path string, token *softhsm.Token, identity string) *host.Plugin {
	t.Helper()
	p := host.Start(t, host.Options{Path: path, Type: "KeyManager", Env: token.Env()})
	data := token.PluginData("")
	if identity != "" {
		lines := strings.Split(data, "\n")
		for i, line := range lines {
			if strings.HasPrefix(line, "key_identifier_file") {
				lines[i] = `key_identifier_value = "` + identity + `"`
			}
		}
		data = strings.Join(lines, "\n")
	}
	if err := p.Configure("example.org", data); err != nil {
		t.Fatal(err)
	}
	return p
}

func unload(t *testing.T, p *host.Plugin) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

func generate(t *testing.T, p *host.Plugin, served fingerprints, id string, keyType keymanagerv1.KeyType) {
	t.Helper()
	response, err := p.KeyManager().GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keyType})
	if err != nil {
		t.Fatalf("GenerateKey %q: %v", id, err)
	}
	served[id] = response.PublicKey.Fingerprint
}

// serves fails the test unless the plugin has these keys and no others, and signs with each.
func serves(t *testing.T, p *host.Plugin, wanted fingerprints) {
	t.Helper()
	response, err := p.KeyManager().GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	found := fingerprints{}
	for _, key := range response.PublicKeys {
		found[key.Id] = key.Fingerprint
		signs(t, p, key)
	}
	if !maps.Equal(found, wanted) {
		t.Fatalf("it serves %v; want %v", found, wanted)
	}
}

func signs(t *testing.T, p *host.Plugin, key *keymanagerv1.PublicKey) {
	t.Helper()
	digest := sha256.Sum256([]byte(key.Id))
	response, err := p.KeyManager().SignData(ctx, &keymanagerv1.SignDataRequest{KeyId: key.Id, Data: digest[:],
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256}})
	if err != nil {
		t.Fatalf("SignData %q: %v", key.Id, err)
	}
	public, err := x509.ParsePKIXPublicKey(key.PkixData)
	if err != nil {
		t.Fatal(err)
	}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(public, digest[:], response.Signature) {
			err = errors.New("wrong ECDSA signature")
		}
	case *rsa.PublicKey:
		err = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], response.Signature)
	}
	if err != nil {
		t.Fatalf("signature of %q: %v", key.Id, err)
	}
}

// kept is what stands in keys.json beside a kept token: each server on it, by its
// key_identifier_value ("": by the key_identifier_file hsm-id), with its keys.
type kept []struct {
	Identity string       `json:"identity"`
	Keys     fingerprints `json:"keys"`
}

// restore lays out a kept token and reads what must be on it.
func restore(t *testing.T, folder string) (*softhsm.Token, kept) {
	t.Helper()
	token := softhsm.Restore(t, filepath.Join(folder, "tokens"))
	identity, err := os.ReadFile(filepath.Join(folder, "hsm-id"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(token.Dir, "hsm-id"), identity, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	var servers kept
	if err := json.Unmarshal(text, &servers); err != nil {
		t.Fatal(err)
	}
	return token, servers
}

// The token was written by the first version that landed, commit 9ba05163ff16, on SoftHSM
// 2.6.1, and is never written again: two servers of example.org, keys of three types, key
// ids that must be escaped in labels.
func TestTheKeptTokenOfFormat1IsServedWhole(t *testing.T) {
	token, servers := restore(t, "../../data/format-1")
	if len(servers) != 2 {
		t.Fatalf("%d servers in keys.json", len(servers))
	}
	for _, server := range servers {
		p := load(t, "", token, server.Identity)
		serves(t, p, server.Keys)
		unload(t, p)
	}
}

func TestKeysOnTheKeptTokenAreRotatedLikeOurOwn(t *testing.T) {
	token, servers := restore(t, "../../data/format-1")
	p := load(t, "", token, servers[0].Identity)
	before := len(token.Labels(t))
	generate(t, p, servers[0].Keys, "x509-CA-A", p384)
	p.Logs.Wait(t, "superseded key stays for spire-hsm prune") // nothing says that we made it
	if after := len(token.Labels(t)); after != before+1 {
		t.Errorf("%d keys on the token before, %d after", before, after)
	}
	unload(t, p)
	for _, server := range servers {
		p := load(t, "", token, server.Identity)
		serves(t, p, server.Keys)
		unload(t, p)
	}
}

// previous is the path of the program as it was at the last release.
func previous(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("../../lib/previous.sh")
	var reason strings.Builder
	cmd.Stderr = &reason
	path, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		t.Skip("there is no release to upgrade from:", reason.String())
	}
	if err != nil {
		t.Fatalf("previous.sh: %v\n%s", err, reason.String())
	}
	return strings.TrimSpace(string(path))
}

// tests/real/upgrade.sh does it with SPIRE, an agent and the record's versions.
func TestUpgradeAndRollbackKeepEveryKey(t *testing.T) {
	before := previous(t)
	token := softhsm.New(t)
	served := fingerprints{}
	p := load(t, before, token, "")
	generate(t, p, served, "x509-CA-A", p256)
	generate(t, p, served, "JWT-Signer-A", rsa2048)
	generate(t, p, served, "bundle-acme-acme_account+key", p256)
	unload(t, p)

	for _, path := range []string{"", before, ""} { // the upgrade, the rollback, the second try
		p = load(t, path, token, "")
		serves(t, p, served)
		generate(t, p, served, "x509-CA-B", p384)
		generate(t, p, served, "JWT-Signer-A", rsa2048)
		scene.Eventually(t, "what was superseded is destroyed, and nothing else", func() bool {
			return len(token.Labels(t)) == len(served)
		})
		serves(t, p, served)
		unload(t, p)
	}
}
