// Package keymanager_test drives the real binary, on a real SoftHSM token, through a real
// go-plugin connection, as SPIRE's server does.
package keymanager_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "crypto/sha3"
	_ "crypto/sha512"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/softhsm"
)

var ctx = context.Background()

// start loads the plugin for a token without configuring it.
func start(t testing.TB, token *softhsm.Token) *host.Plugin {
	t.Helper()
	return host.Start(t, host.Options{Type: "KeyManager", Env: token.Env()})
}

func configure(t testing.TB, p *host.Plugin, pluginData string) {
	t.Helper()
	if err := p.Configure("example.org", pluginData); err != nil {
		t.Fatalf("Configure: %v", err)
	}
}

func ready(t testing.TB, token *softhsm.Token) *host.Plugin {
	t.Helper()
	p := start(t, token)
	configure(t, p, token.PluginData(""))
	return p
}

func generate(t testing.TB, p *host.Plugin, id string, keyType keymanagerv1.KeyType) *keymanagerv1.PublicKey {
	t.Helper()
	response, err := p.KeyManager().GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keyType})
	if err != nil {
		t.Fatalf("GenerateKey %q: %v", id, err)
	}
	checkPublicKey(t, id, keyType, response.PublicKey)
	return response.PublicKey
}

func checkPublicKey(t testing.TB, id string, keyType keymanagerv1.KeyType, key *keymanagerv1.PublicKey) {
	t.Helper()
	sum := sha256.Sum256(key.PkixData)
	if key.Id != id || key.Type != keyType || key.Fingerprint != hex.EncodeToString(sum[:]) {
		t.Fatalf("key %q has id %q, type %v, fingerprint %q", id, key.Id, key.Type, key.Fingerprint)
	}
	switch public := parse(t, key).(type) {
	case *ecdsa.PublicKey:
		if bits := map[keymanagerv1.KeyType]int{p256: 256, p384: 384}[keyType]; public.Params().BitSize != bits {
			t.Fatalf("key %q: curve of %d bits for %v", id, public.Params().BitSize, keyType)
		}
	case *rsa.PublicKey:
		if bits := map[keymanagerv1.KeyType]int{rsa2048: 2048, rsa4096: 4096}[keyType]; public.N.BitLen() != bits {
			t.Fatalf("key %q: %d bits for %v", id, public.N.BitLen(), keyType)
		}
	}
}

func parse(t testing.TB, key *keymanagerv1.PublicKey) crypto.PublicKey {
	t.Helper()
	public, err := x509.ParsePKIXPublicKey(key.PkixData)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func keys(t testing.TB, p *host.Plugin) map[string]string {
	t.Helper()
	response, err := p.KeyManager().GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	if err != nil {
		t.Fatalf("GetPublicKeys: %v", err)
	}
	found := map[string]string{}
	for _, key := range response.PublicKeys {
		found[key.Id] = key.Fingerprint
	}
	return found
}

const (
	p256    = keymanagerv1.KeyType_EC_P256
	p384    = keymanagerv1.KeyType_EC_P384
	rsa2048 = keymanagerv1.KeyType_RSA_2048
	rsa4096 = keymanagerv1.KeyType_RSA_4096
)

var hashes = []crypto.Hash{crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_224,
	crypto.SHA3_256, crypto.SHA3_384, crypto.SHA3_512, crypto.SHA512_224, crypto.SHA512_256}

func digest(hash crypto.Hash) []byte {
	h := hash.New()
	fmt.Fprint(h, rand.Int63())
	return h.Sum(nil)
}

func plain(id string, hash crypto.Hash, data []byte) *keymanagerv1.SignDataRequest {
	return &keymanagerv1.SignDataRequest{KeyId: id, Data: data,
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm(hash)}}
}

func pss(id string, hash crypto.Hash, salt int32, data []byte) *keymanagerv1.SignDataRequest {
	return &keymanagerv1.SignDataRequest{KeyId: id, Data: data,
		SignerOpts: &keymanagerv1.SignDataRequest_PssOptions{PssOptions: &keymanagerv1.SignDataRequest_PSSOptions{
			SaltLength: salt, HashAlgorithm: keymanagerv1.HashAlgorithm(hash)}}}
}

func sign(t testing.TB, p *host.Plugin, key *keymanagerv1.PublicKey, request *keymanagerv1.SignDataRequest) {
	t.Helper()
	response, err := p.KeyManager().SignData(ctx, request)
	if err == nil {
		err = load.Verify(key, request, response)
	}
	if err != nil {
		t.Fatalf("SignData %v: %v", request, err)
	}
}

func expect(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("got %v; want %v with %q", err, code, text)
	}
}

func TestEveryKeyTypeSignsWithEveryHashAndPadding(t *testing.T) {
	p := ready(t, softhsm.New(t))
	for _, keyType := range []keymanagerv1.KeyType{p256, p384, rsa2048, rsa4096} {
		t.Run(keyType.String(), func(t *testing.T) {
			id := "key-" + keyType.String()
			key := generate(t, p, id, keyType)
			for _, hash := range hashes {
				sign(t, p, key, plain(id, hash, digest(hash)))
				if keyType == rsa2048 || keyType == rsa4096 {
					for _, salt := range []int32{-1, 0, 20} {
						sign(t, p, key, pss(id, hash, salt, digest(hash)))
					}
				}
			}
		})
	}
}

func TestRequestsThatCannotBeAreRefusedWithTheirReason(t *testing.T) {
	p := ready(t, softhsm.New(t))
	generate(t, p, "ec", p256)
	generate(t, p, "rsa", rsa2048)
	km := p.KeyManager()
	for _, c := range []struct {
		name    string
		request *keymanagerv1.SignDataRequest
		code    codes.Code
		text    string
	}{
		{"no key id", plain("", crypto.SHA256, digest(crypto.SHA256)), codes.InvalidArgument, "key id is required"},
		{"no options", &keymanagerv1.SignDataRequest{KeyId: "ec", Data: digest(crypto.SHA256)}, codes.InvalidArgument, "signer opts is required"},
		{"no hash", plain("ec", 0, digest(crypto.SHA256)), codes.InvalidArgument, "hash algorithm is required"},
		{"no PSS hash", pss("rsa", 0, -1, digest(crypto.SHA256)), codes.InvalidArgument, "hash algorithm in PSS options is required"},
		{"unknown hash", plain("ec", 99, digest(crypto.SHA256)), codes.InvalidArgument, "unknown hash algorithm 99"},
		{"digest too short", plain("ec", crypto.SHA256, make([]byte, 31)), codes.InvalidArgument, "31 bytes"},
		{"digest too long", plain("ec", crypto.SHA256, make([]byte, 4000)), codes.InvalidArgument, "4000 bytes"},
		{"no digest", plain("ec", crypto.SHA256, nil), codes.InvalidArgument, "0 bytes"},
		{"PSS with an EC key", pss("ec", crypto.SHA256, -1, digest(crypto.SHA256)), codes.InvalidArgument, "PSS"},
		{"salt too long", pss("rsa", crypto.SHA256, 223, digest(crypto.SHA256)), codes.InvalidArgument, "salt"},
		{"salt below -1", pss("rsa", crypto.SHA256, -2, digest(crypto.SHA256)), codes.InvalidArgument, "salt"},
		{"unknown key", plain("nope", crypto.SHA256, digest(crypto.SHA256)), codes.NotFound, `key "nope" not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := km.SignData(ctx, c.request)
			expect(t, err, c.code, c.text)
		})
	}
	_, err := km.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyType: p256})
	expect(t, err, codes.InvalidArgument, "key id is required")
	_, err = km.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: "x"})
	expect(t, err, codes.InvalidArgument, "key type is required")
	_, err = km.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: "x", KeyType: 99})
	expect(t, err, codes.InvalidArgument, "unknown key type 99")
	_, err = km.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: strings.Repeat("x", 256), KeyType: p256})
	expect(t, err, codes.InvalidArgument, "255")
	_, err = km.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: "__check", KeyType: p256})
	expect(t, err, codes.InvalidArgument, "reserved")
	_, err = km.GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{})
	expect(t, err, codes.InvalidArgument, "key id is required")
	_, err = km.GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{KeyId: "nope"})
	expect(t, err, codes.NotFound, `key "nope" not found`)
}

// SPIRE gives 30 s; others may give little. Of many calls one comes through on any machine: a
// fixed time for the answer's way would take all that they have.
func TestACallerWithLessThanHalfASecondIsServed(t *testing.T) {
	p := ready(t, softhsm.New(t))
	key := generate(t, p, "x509-CA-A", p256)
	for _, patience := range []time.Duration{450 * time.Millisecond, 200 * time.Millisecond} {
		var last error
		served := false
		for i := 0; i < 50 && !served; i++ {
			hurried, cancel := context.WithTimeout(ctx, patience)
			_, last = p.KeyManager().SignData(hurried, &keymanagerv1.SignDataRequest{KeyId: key.Id, Data: make([]byte, 32),
				SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256}})
			cancel()
			served = last == nil
		}
		if !served {
			t.Errorf("nobody who had %v was served: %v", patience, last)
		}
	}
}

func TestNothingIsAnsweredBeforeConfigure(t *testing.T) {
	p := start(t, softhsm.New(t))
	km := p.KeyManager()
	_, err := km.GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	expect(t, err, codes.FailedPrecondition, "not configured")
	_, err = km.GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{KeyId: "x"})
	expect(t, err, codes.FailedPrecondition, "not configured")
	_, err = km.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: "x", KeyType: p256})
	expect(t, err, codes.FailedPrecondition, "not configured")
	_, err = km.SignData(ctx, plain("x", crypto.SHA256, digest(crypto.SHA256)))
	expect(t, err, codes.FailedPrecondition, "not configured")
}

func TestEveryKeyIdSpireMayUseSurvivesARestart(t *testing.T) {
	token := softhsm.New(t)
	ids := []string{"x509-CA-A", "x509-CA-B", "JWT-Signer-A", "WIT-Signer-B", "bundle-acme-example.org+rsa",
		"bundle-acme-acme_account+key", "a/b", "a b", "_", "schlüssel-鍵", strings.Repeat("é", 127) + "x",
		"pkcs11:token=x;object=y", "%s%n", "..", "sp1-0000000000000000-000000-x"}
	made := map[string]string{}
	p := start(t, token)
	configure(t, p, token.PluginData(""))
	for _, id := range ids {
		made[id] = generate(t, p, id, p256).Fingerprint
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = ready(t, token)
	if found := keys(t, p); !mapsEqual(found, made) {
		t.Errorf("after the restart: %v; want %v", found, made)
	}
	for _, id := range ids {
		response, err := p.KeyManager().GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{KeyId: id})
		if err != nil {
			t.Fatalf("GetPublicKey %q: %v", id, err)
		}
		sign(t, p, response.PublicKey, plain(id, crypto.SHA256, digest(crypto.SHA256)))
	}
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for key, value := range a {
		if b[key] != value {
			return false
		}
	}
	return true
}

func TestOverwritingAnIdServesTheNewKeyAndTheOldOneLeavesTheToken(t *testing.T) {
	token := softhsm.New(t)
	p := ready(t, token)
	first := generate(t, p, "JWT-Signer-A", p256)
	second := generate(t, p, "JWT-Signer-A", rsa2048)
	if first.Fingerprint == second.Fingerprint {
		t.Fatal("the same key again")
	}
	sign(t, p, second, plain("JWT-Signer-A", crypto.SHA256, digest(crypto.SHA256)))
	p.Logs.Wait(t, "superseded key destroyed")
	if labels := token.Labels(t); len(labels) != 1 {
		t.Errorf("on the token: %v; want one key", labels)
	}
	if public := token.Tool(t, "--list-objects", "--type", "pubkey"); strings.Count(public, "label:") != 1 {
		t.Errorf("public keys on the token:\n%s", public)
	}
}

func TestKeysAreSensitiveNotExtractableAndMadeOnTheToken(t *testing.T) {
	token := softhsm.New(t)
	p := ready(t, token)
	generate(t, p, "ec", p256)
	generate(t, p, "rsa", rsa2048)
	listing := token.Tool(t, "--list-objects", "--type", "privkey")
	if strings.Count(listing, "sensitive, always sensitive, never extractable, local") != 2 ||
		strings.Count(listing, "Usage:      sign\n") != 2 {
		t.Errorf("pkcs11-tool shows:\n%s", listing)
	}
}

func TestServersAndTrustDomainsShareATokenWithoutTouchingEachOther(t *testing.T) {
	token := softhsm.New(t)
	token.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "somebody else's", "--id", "01")
	type server struct{ domain, identity string }
	servers := []server{{"example.org", "one"}, {"example.org", "two"}, {"example", "one"}, {"a.b", "one"}, {"a_b", "one"}}
	made := make([]map[string]string, len(servers))
	plugins := make([]*host.Plugin, len(servers))
	for i, s := range servers {
		data := strings.Replace(token.PluginData(""), fmt.Sprintf("key_identifier_file = %q", filepath.Join(token.Dir, "hsm-id")),
			fmt.Sprintf("key_identifier_value = %q", s.identity+token.Dir), 1)
		plugins[i] = start(t, token)
		if err := plugins[i].Configure(s.domain, data); err != nil {
			t.Fatal(err)
		}
		generate(t, plugins[i], "x509-CA-A", p256)
		made[i] = map[string]string{"x509-CA-A": generate(t, plugins[i], "x509-CA-A", p256).Fingerprint}
		plugins[i].Logs.Wait(t, "superseded key destroyed")
	}
	for i, p := range plugins {
		if found := keys(t, p); !mapsEqual(found, made[i]) {
			t.Errorf("%v serves %v; want %v", servers[i], found, made[i])
		}
	}
	labels := token.Labels(t)
	t.Cleanup(func() { // what keeps their place on this host
		for _, label := range labels {
			if parts := strings.Split(label, "-"); parts[0] == "sp1" {
				_ = os.Remove("/dev/shm/spire-hsm-" + parts[1])
			}
		}
	})
	if len(labels) != len(servers)+1 || !slices.Contains(labels, "somebody else's") {
		t.Errorf("on the token: %v", labels)
	}
}

func TestASecondProcessWithTheSameIdentityFileIsRefused(t *testing.T) {
	token := softhsm.New(t)
	first := ready(t, token)
	key := generate(t, first, "x509-CA-A", p256)
	second := start(t, token)
	err := second.Configure("example.org", token.PluginData(""))
	expect(t, err, codes.FailedPrecondition, "in use by another process")
	sign(t, first, key, plain("x509-CA-A", crypto.SHA256, digest(crypto.SHA256)))
}

func TestValidateTouchesNeitherTokenNorDisk(t *testing.T) {
	token := softhsm.New(t)
	p := start(t, token)
	before, err := os.ReadDir(token.Dir)
	if err != nil {
		t.Fatal(err)
	}
	response, err := p.Validate("example.org", token.PluginData(""))
	if err != nil || !response.Valid {
		t.Errorf("Validate: %v, %v", response, err)
	}
	after, err := os.ReadDir(token.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(before) != len(after) {
		t.Errorf("files before: %v; after: %v", before, after)
	}
}
