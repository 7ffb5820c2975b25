package commands_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"

	"spire-hsm/peers/host"
)

// published is a file with an X.509 authority that ends then, and these JWT authorities.
func published(t *testing.T, format string, end time.Time, ids ...string) (path string, authority *x509.Certificate) {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"SPIFFE"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	bundle := &types.Bundle{TrustDomain: "example.org", RefreshHint: 300, SequenceNumber: 42,
		X509Authorities: []*types.X509Certificate{{Asn1: der}}}
	for _, id := range ids {
		bundle.JwtAuthorities = append(bundle.JwtAuthorities, &types.JWTKey{PublicKey: key, KeyId: id})
	}
	path = filepath.Join(t.TempDir(), "bundle")
	data := fmt.Sprintf("path = %q\nformat = %q\n", path, format)
	if format == "oidc" {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		data += "issuer = \"https://oidc.example.org\"\n"
		path = filepath.Join(path, "keys")
	}
	p := host.Start(t, host.Options{Type: "BundlePublisher"})
	if err := p.Configure("example.org", data); err != nil {
		t.Fatal(err)
	}
	if _, err := p.BundlePublisher().PublishBundle(context.Background(), &bundlepublisherv1.PublishBundleRequest{Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	authority, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return path, authority
}

func TestBundleShowListsTheAuthorities(t *testing.T) {
	s := &scene{T: t}
	path, authority := published(t, "spiffe", time.Now().Add(time.Hour), "key-1", "key-2")
	output, _ := s.run(fine, "bundle", "show", path)
	sum := sha256.Sum256(authority.Raw)
	s.contains(output, "format: spiffe", "sequence: 42", "refresh hint: 300 s", "X.509 authorities: 1",
		"JWT authorities: 2", "key-1", "key-2", "EC P-256", "O=SPIFFE", hex.EncodeToString(sum[:]),
		hex.EncodeToString(authority.SubjectKeyId), authority.NotAfter.UTC().Format(time.RFC3339), "fine:")
}

func TestBundleShowWarnsOfWhatTheDiscoveryProviderCannotUse(t *testing.T) {
	s := &scene{T: t}
	for _, format := range []string{"jwks", "pem"} {
		path, _ := published(t, format, time.Now().Add(time.Hour), "key-1")
		output, _ := s.run(wrong, "bundle", "show", path)
		s.contains(output, "format: "+format, "WARNING: the OIDC discovery provider cannot read this format")
		if strings.Count(output, "WARNING") != 1 {
			t.Fatal(output)
		}
	}
	path, _ := published(t, "spiffe", time.Now().Add(-time.Minute))
	output, _ := s.run(wrong, "bundle", "show", path)
	s.contains(output, "WARNING: no JWT authority", "EXPIRED", "has expired")
}

func TestBundleShowReadsAKeySetForOIDC(t *testing.T) {
	s := &scene{T: t}
	path, _ := published(t, "oidc", time.Now().Add(time.Hour), "key-1", "key-2")
	output, _ := s.run(fine, "bundle", "show", path)
	s.contains(output, "format: oidc", "JWT authorities: 2", "key-1", "key-2", "EC P-256", "fine:")
	if strings.Contains(output, "X.509") {
		t.Error(output)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s.write(path, strings.Replace(string(whole), "ES256", "ES384", 1))
	output, _ = s.run(wrong, "bundle", "show", path)
	s.contains(output, "WARNING: the file is damaged", "\"alg\" is not one that SPIRE signs with")
}

func TestBundleShowSaysThatAFileIsDamaged(t *testing.T) {
	s := &scene{T: t}
	path, _ := published(t, "spiffe", time.Now().Add(time.Hour), "key-1", "key-2")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"half":          string(whole[:len(whole)/2]),
		"empty":         "",
		"no key id":     strings.Replace(string(whole), "key-1", "", 1),
		"one id twice":  strings.Replace(string(whole), "key-2", "key-1", 1),
		"use no text":   strings.Replace(string(whole), `"jwt-svid"`, "7", 1),
		"no JSON":       "-----BEGIN CERTIFICATE-----\nAAAA\n",
		"no base64":     strings.Replace(string(whole), "MII", "M!!", 1),
		"text sequence": strings.Replace(string(whole), `"spiffe_sequence": 42`, `"spiffe_sequence": "42"`, 1),
		"a list":        "[]",
		"keys no list":  `{"keys": 7}`,
	} {
		s.write(path, text)
		output, _ := s.run(wrong, "bundle", "show", path)
		if !strings.Contains(output, "WARNING: the file is damaged") {
			t.Errorf("%s:\n%s", what, output)
		}
	}
	_, stderr := s.run(cannot, "bundle", "show", filepath.Dir(path))
	s.contains(stderr, "not a regular file")
	_, stderr = s.run(cannot, "bundle", "show", path, "--format", "der")
	s.contains(stderr, "expected spiffe, jwks, pem or oidc")
}

func TestBundleShowPassesOverWhatTheDiscoveryProviderPassesOver(t *testing.T) {
	s := &scene{T: t}
	path, _ := published(t, "spiffe", time.Now().Add(time.Hour), "key-1", "key-2")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"another use": strings.Replace(string(whole), "jwt-svid", "tls", 1),
		"no use":      strings.Replace(string(whole), `"use": "jwt-svid",`, "", 1),
	} {
		s.write(path, text)
		read, err := spiffebundle.Load(spiffeid.RequireTrustDomainFromString("example.org"), path)
		if err != nil || len(read.JWTAuthorities()) != 1 {
			t.Fatalf("%s: go-spiffe, which the provider reads with: %v, %v", what, read, err)
		}
		output, _ := s.run(fine, "bundle", "show", path)
		s.contains(output, "JWT authorities: 1", "keys for another use, which readers ignore: 1", "fine:")
	}
}

func TestBundleShowSaysThatAnEmptyListIsBelieved(t *testing.T) {
	s := &scene{T: t}
	path := filepath.Join(t.TempDir(), "bundle")
	s.write(path, `{"keys": [], "spiffe_sequence": 7}`)
	output, _ := s.run(wrong, "bundle", "show", path)
	s.contains(output, "WARNING: the file has no authorities", "serves no key")
	if strings.Contains(output, "refuse") {
		t.Fatal(output)
	}
}
