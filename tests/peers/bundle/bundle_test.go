// Package bundle lets the real readers judge the files that spire-hsm writes: go-spiffe's
// parser, which the OIDC discovery provider uses, go-jose, and crypto/x509; and compares
// them with what SPIRE's own publishers write. BUNDLE_DUMP names build/tests/support/bundle_dump.
package bundle

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk/support/bundleformat"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const rounds = 60

var trustDomain = spiffeid.RequireTrustDomainFromString("example.org")

type equaler interface{ Equal(crypto.PublicKey) bool }

func dump(t *testing.T, format string, bundle *types.Bundle) ([]byte, error) {
	t.Helper()
	message, err := proto.Marshal(bundle)
	if err != nil {
		t.Fatal(err)
	}
	return dumpBytes(t, format, message)
}

func dumpBytes(t *testing.T, format string, message []byte) ([]byte, error) {
	t.Helper()
	path := os.Getenv("BUNDLE_DUMP")
	if path == "" {
		t.Fatal("BUNDLE_DUMP must name build/tests/support/bundle_dump")
	}
	if !filepath.IsAbs(path) {
		t.Fatal("BUNDLE_DUMP must be an absolute path")
	}
	command := exec.Command(path, format)
	command.Stdin = bytes.NewReader(message)
	var out, complaint bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaint
	if err := command.Run(); err != nil {
		return nil, fmt.Errorf("%v: %s", err, strings.TrimSpace(complaint.String()))
	}
	return out.Bytes(), nil
}

func mustDump(t *testing.T, format string, bundle *types.Bundle) []byte {
	t.Helper()
	file, err := dump(t, format, bundle)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// ---- authorities ----

var curves = map[string]elliptic.Curve{
	"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521(),
}

var bits = map[string]int{"RSA-2048": 2048, "RSA-4096": 4096}

func newKey(t *testing.T, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch {
	case curves[kind] != nil:
		key, err = ecdsa.GenerateKey(curves[kind], rand.Reader)
	case bits[kind] != 0:
		key, err = rsa.GenerateKey(rand.Reader, bits[kind])
	case kind == "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// As SPIRE makes its CA.
func newCertificate(t *testing.T, key crypto.Signer, serial int64) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  nil,
	}
	template.URIs = append(template.URIs, trustDomain.ID().URL())
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

type pool struct {
	certificates [][]byte
	keys         [][]byte
}

// RSA keys are slow to make, so a few are used again and again; EC keys come in numbers
// that make leading zeros in coordinates certain.
func newPool(t *testing.T) *pool {
	t.Helper()
	made := &pool{}
	for kind, count := range map[string]int{
		"P-256": 200, "P-384": 60, "P-521": 60, "RSA-2048": 3, "RSA-4096": 1, "Ed25519": 3,
	} {
		for i := range count {
			key := newKey(t, kind)
			spki, err := x509.MarshalPKIXPublicKey(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			made.keys = append(made.keys, spki)
			made.certificates = append(made.certificates, newCertificate(t, key, int64(i+1)))
		}
	}
	return made
}

const idAlphabet = "abcXYZ019-_./+ \"\\<&\u00e9\u2028\U0001f511\t"

func keyID(random *mathrand.Rand, i int) string {
	letters := []rune(idAlphabet)
	var id strings.Builder
	for range random.IntN(40) {
		id.WriteRune(letters[random.IntN(len(letters))])
	}
	return fmt.Sprintf("%s%d", id.String(), i)
}

func (p *pool) bundle(random *mathrand.Rand) *types.Bundle {
	bundle := &types.Bundle{
		TrustDomain:    "example.org",
		RefreshHint:    []int64{0, 1, 300, 86400}[random.IntN(4)],
		SequenceNumber: []uint64{0, 1, 42, 1 << 53, 1<<63 - 1}[random.IntN(5)],
	}
	for _, i := range random.Perm(len(p.certificates))[:1+random.IntN(8)] {
		bundle.X509Authorities = append(bundle.X509Authorities,
			&types.X509Certificate{Asn1: p.certificates[i], Tainted: random.IntN(4) == 0})
	}
	for _, i := range random.Perm(len(p.keys))[:random.IntN(9)] {
		bundle.JwtAuthorities = append(bundle.JwtAuthorities, &types.JWTKey{
			PublicKey: p.keys[i], KeyId: keyID(random, i), ExpiresAt: 1, Tainted: random.IntN(4) == 0,
		})
	}
	return bundle
}

// ---- judging ----

func sameKey(t *testing.T, got any, spki []byte) {
	t.Helper()
	want, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := got.(equaler)
	if !ok || !key.Equal(want) {
		t.Fatalf("read %v, given %v", got, want)
	}
}

func sameJWT(t *testing.T, got map[string]crypto.PublicKey, want []*types.JWTKey) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d JWT authorities, given %d", len(got), len(want))
	}
	for _, key := range want {
		sameKey(t, got[key.KeyId], key.PublicKey)
	}
}

func sameX509(t *testing.T, got []*x509.Certificate, want []*types.X509Certificate) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d X.509 authorities, given %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i].Raw, want[i].Asn1) {
			t.Fatalf("X.509 authority %d differs", i)
		}
	}
}

func judgeSPIFFE(t *testing.T, file []byte, bundle *types.Bundle) {
	t.Helper()
	read, err := spiffebundle.Parse(trustDomain, file)
	if err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	sameX509(t, read.X509Authorities(), bundle.X509Authorities)
	sameJWT(t, read.JWTAuthorities(), bundle.JwtAuthorities)
	if number, ok := read.SequenceNumber(); number != bundle.SequenceNumber || ok != (number > 0) {
		t.Fatalf("sequence number %d (%v), given %d", number, ok, bundle.SequenceNumber)
	}
	if hint, ok := read.RefreshHint(); int64(hint.Seconds()) != bundle.RefreshHint || ok != (hint > 0) {
		t.Fatalf("refresh hint %v (%v), given %d", hint, ok, bundle.RefreshHint)
	}
	stock, err := bundleformat.FormatBundle(bundle, bundleformat.SPIFFE)
	if err != nil {
		t.Fatal(err)
	}
	other, err := spiffebundle.Parse(trustDomain, stock)
	if err != nil {
		t.Fatal(err)
	}
	if !read.Equal(other) {
		t.Fatalf("not what SPIRE's own publishers say:\n%s\n%s", file, stock)
	}
}

// Each key by what it is, for comparing sets.
func index(t *testing.T, file []byte) map[string]jose.JSONWebKey {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(file, &set); err != nil {
		t.Fatalf("%v\n%s", err, file)
	}
	keys := map[string]jose.JSONWebKey{}
	for _, key := range set.Keys {
		name := "jwt " + key.KeyID
		if len(key.Certificates) > 0 {
			name = "x509 " + string(key.Certificates[0].Raw)
		}
		keys[name] = key
	}
	return keys
}

func judgeJWKS(t *testing.T, file []byte, bundle *types.Bundle) {
	t.Helper()
	stock, err := bundleformat.FormatBundle(bundle, bundleformat.JWKS)
	if err != nil {
		t.Fatal(err)
	}
	got, want := index(t, file), index(t, stock)
	if len(got) != len(want) || len(got) != len(bundle.X509Authorities)+len(bundle.JwtAuthorities) {
		t.Fatalf("%d keys, SPIRE's own publishers write %d", len(got), len(want))
	}
	for name, key := range want {
		mine := got[name]
		if mine.Key == nil || !mine.Key.(equaler).Equal(key.Key) || mine.Use != key.Use ||
			mine.KeyID != key.KeyID || mine.Algorithm != key.Algorithm {
			t.Fatalf("%+v, SPIRE's own publishers write %+v", mine, key)
		}
	}
}

// The X.509 keys have no id, which jwtbundle does not accept: without them it must read all.
func judgeJWTBundle(t *testing.T, bundle *types.Bundle) {
	t.Helper()
	if len(bundle.JwtAuthorities) == 0 {
		return
	}
	alone := proto.CloneOf(bundle)
	alone.X509Authorities = nil
	read, err := jwtbundle.Parse(trustDomain, mustDump(t, "jwks", alone))
	if err != nil {
		t.Fatal(err)
	}
	sameJWT(t, read.JWTAuthorities(), bundle.JwtAuthorities)
}

func judgePEM(t *testing.T, file []byte, bundle *types.Bundle) {
	t.Helper()
	stock, err := bundleformat.FormatBundle(bundle, bundleformat.PEM)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, stock) {
		t.Fatalf("not what SPIRE's own publishers write:\n%s\n%s", file, stock)
	}
	var read []*x509.Certificate
	for block, rest := pem.Decode(file); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		read = append(read, certificate)
	}
	sameX509(t, read, bundle.X509Authorities)
}

// What SPIRE signs with a key of this kind, and its discovery provider therefore says of it.
var algorithms = map[string]string{
	"P-256": "ES256", "P-384": "ES384", "P-521": "", "RSA-2048": "RS256", "RSA-4096": "RS256", "Ed25519": "",
}

func TestAKeySetForOIDCSaysWhatEachKeySignsWith(t *testing.T) {
	bundle := &types.Bundle{TrustDomain: "example.org", SequenceNumber: 1}
	for kind := range algorithms {
		der, err := x509.MarshalPKIXPublicKey(newKey(t, kind).Public())
		if err != nil {
			t.Fatal(err)
		}
		bundle.JwtAuthorities = append(bundle.JwtAuthorities, &types.JWTKey{PublicKey: der, KeyId: kind})
	}
	keys := index(t, mustDump(t, "oidc", bundle))
	if len(keys) != len(algorithms) {
		t.Fatalf("%d keys, given %d", len(keys), len(algorithms))
	}
	for _, given := range bundle.JwtAuthorities {
		key := keys["jwt "+given.KeyId]
		sameKey(t, key.Key, given.PublicKey)
		if key.Algorithm != algorithms[given.KeyId] || key.Use != "" {
			t.Errorf("%s: %q, use %q", given.KeyId, key.Algorithm, key.Use)
		}
	}
}

func TestRealReadersReadWhatWasGiven(t *testing.T) {
	authorities := newPool(t)
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for range rounds {
		bundle := authorities.bundle(random)
		judgeSPIFFE(t, mustDump(t, "spiffe", bundle), bundle)
		judgeJWKS(t, mustDump(t, "jwks", bundle), bundle)
		judgePEM(t, mustDump(t, "pem", bundle), bundle)
		judgeJWTBundle(t, bundle)
	}
	whole := &types.Bundle{TrustDomain: "example.org", SequenceNumber: 7}
	for i := range authorities.keys {
		whole.X509Authorities = append(whole.X509Authorities,
			&types.X509Certificate{Asn1: authorities.certificates[i]})
		whole.JwtAuthorities = append(whole.JwtAuthorities,
			&types.JWTKey{PublicKey: authorities.keys[i], KeyId: fmt.Sprint(i)})
	}
	judgeSPIFFE(t, mustDump(t, "spiffe", whole), whole)
}

// What newer servers add (WIT authorities, field 6) must not reach the file.
func TestUnknownAuthoritiesAreLeftOut(t *testing.T) {
	key := newKey(t, "P-256")
	bundle := &types.Bundle{
		TrustDomain:     "example.org",
		SequenceNumber:  1,
		X509Authorities: []*types.X509Certificate{{Asn1: newCertificate(t, key, 1)}},
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	bundle.JwtAuthorities = []*types.JWTKey{{PublicKey: public, KeyId: "kid"}}
	message, err := proto.Marshal(bundle)
	if err != nil {
		t.Fatal(err)
	}
	for field := protowire.Number(6); field < 12; field++ {
		message = protowire.AppendTag(message, field, protowire.BytesType)
		message = protowire.AppendBytes(message, []byte("\x0a\x03new\x12\x03kid"))
	}
	for _, format := range []string{"spiffe", "jwks", "pem", "oidc"} {
		file, err := dumpBytes(t, format, message)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(file, mustDump(t, format, bundle)) {
			t.Errorf("%s: what is unknown has changed the file:\n%s", format, file)
		}
	}
}

func spki(t *testing.T, algorithm asn1.ObjectIdentifier, parameters, key []byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: algorithm, Parameters: asn1.RawValue{FullBytes: parameters}},
		asn1.BitString{Bytes: key, BitLength: 8 * len(key)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Whatever is accepted, the real reader reads: keys bent one byte at a time.
func TestWhatIsAcceptedIsRead(t *testing.T) {
	ec := asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	p256 := []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}
	key := newKey(t, "P-256").(*ecdsa.PrivateKey)
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	good := spki(t, ec, p256, point)
	candidates := [][]byte{
		good,
		spki(t, ec, p256, elliptic.MarshalCompressed(elliptic.P256(), key.X, key.Y)),
		spki(t, ec, []byte{5, 0}, point),
		append(bytes.Clone(good), 0),
	}
	rsaKey, err := x509.MarshalPKIXPublicKey(newKey(t, "RSA-2048").Public())
	if err != nil {
		t.Fatal(err)
	}
	certificate := newCertificate(t, newKey(t, "P-256"), 1)
	random := mathrand.New(mathrand.NewPCG(3, 4))
	for range 300 {
		for _, from := range [][]byte{good, rsaKey} {
			bent := bytes.Clone(from)
			bent[random.IntN(60)%len(bent)] ^= byte(1 << random.IntN(8))
			candidates = append(candidates, bent)
		}
	}
	accepted := 0
	for _, candidate := range candidates {
		file, err := dump(t, "spiffe", &types.Bundle{
			TrustDomain:    "example.org",
			JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: candidate}},
		})
		if err != nil {
			continue
		}
		accepted++
		read, err := spiffebundle.Parse(trustDomain, file)
		if err != nil {
			t.Fatalf("%v: %x\n%s", err, candidate, file)
		}
		sameKey(t, read.JWTAuthorities()["k"], candidate)
	}
	for range 300 {
		bent := bytes.Clone(certificate)
		bent[random.IntN(len(bent))] ^= byte(1 << random.IntN(8))
		if _, err := x509.ParseCertificate(bent); err != nil {
			continue // SPIRE, which reads with this parser, does not hand such on
		}
		file, err := dump(t, "spiffe", &types.Bundle{
			TrustDomain:     "example.org",
			X509Authorities: []*types.X509Certificate{{Asn1: bent}},
		})
		if err != nil {
			continue
		}
		accepted++
		if _, err := spiffebundle.Parse(trustDomain, file); err != nil {
			t.Fatalf("%v: %x\n%s", err, bent, file)
		}
	}
	if accepted < 50 {
		t.Fatalf("only %d were accepted: nothing was shown", accepted)
	}
}

func TestRefusals(t *testing.T) {
	key := newKey(t, "P-256")
	good, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalPKIXPublicKey(p224.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][]*types.JWTKey{
		"no authorities":   nil,
		"unknown curve":    {{KeyId: "a", PublicKey: good}, {KeyId: "b", PublicKey: other}},
		"no key":           {{KeyId: "a"}},
		"no key id":        {{PublicKey: good}},
		"repeated key ids": {{KeyId: "a", PublicKey: good}, {KeyId: "a", PublicKey: good}},
	} {
		file, err := dump(t, "spiffe", &types.Bundle{TrustDomain: "example.org", JwtAuthorities: keys})
		if err == nil {
			t.Errorf("%s: accepted\n%s", name, file)
		}
	}
}
