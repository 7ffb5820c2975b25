package commands_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"

	"spire-hsm/peers/host"
)

const nonce = "00112233445566778899aabbccddeeff"

type proof struct {
	Use        string          `json:"use"`
	Authority  string          `json:"authority"`
	Type       *string         `json:"type"`
	SHA256     *string         `json:"sha256"`
	PublicKey  *string         `json:"public_key"`
	InToken    bool            `json:"in_token"`
	Reason     *string         `json:"reason"`
	KeyID      string          `json:"key_id"`
	Attributes map[string]bool `json:"attributes"`
	Message    string          `json:"message"`
	Signature  []byte          `json:"signature"`
}

type report struct {
	Bundle struct {
		SHA256   string `json:"sha256"`
		Sequence *int   `json:"sequence"`
	} `json:"bundle"`
	Token struct {
		Label, Serial, Model string
	} `json:"token"`
	AttributeCheck string  `json:"attribute_check"`
	Nonce          string  `json:"nonce"`
	Authorities    []proof `json:"authorities"`
	NotInToken     int     `json:"not_in_token"`
}

// authorities of a bundle: the X.509 ones are self-issued in name only, as the key alone counts.
func (s *scene) authorities(x509Keys, jwtKeys map[string][]byte) *types.Bundle {
	s.Helper()
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	bundle := &types.Bundle{TrustDomain: "example.org", SequenceNumber: 7}
	for _, id := range sorted(x509Keys) {
		public, err := x509.ParsePKIXPublicKey(x509Keys[id])
		if err != nil {
			s.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: id}, IsCA: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			BasicConstraintsValid: true, SubjectKeyId: []byte(id)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, issuer)
		if err != nil {
			s.Fatal(err)
		}
		bundle.X509Authorities = append(bundle.X509Authorities, &types.X509Certificate{Asn1: der})
	}
	for _, id := range sorted(jwtKeys) {
		bundle.JwtAuthorities = append(bundle.JwtAuthorities, &types.JWTKey{PublicKey: jwtKeys[id], KeyId: id})
	}
	return bundle
}

func sorted(keys map[string][]byte) []string {
	var ids []string
	for id := range keys {
		ids = append(ids, id)
	}
	for i := range ids {
		for k := i; k > 0 && ids[k] < ids[k-1]; k-- {
			ids[k], ids[k-1] = ids[k-1], ids[k]
		}
	}
	return ids
}

// publish it by the real publisher.
func (s *scene) publish(format string, bundle *types.Bundle) string {
	s.Helper()
	path := filepath.Join(s.TempDir(), "bundle")
	p := host.Start(s, host.Options{Type: "BundlePublisher"})
	if err := p.Configure("example.org", fmt.Sprintf("path = %q\nformat = %q", path, format)); err != nil {
		s.Fatal(err)
	}
	if _, err := p.BundlePublisher().PublishBundle(context.Background(), &bundlepublisherv1.PublishBundleRequest{Bundle: bundle}); err != nil {
		s.Fatal(err)
	}
	return path
}

// make keys as a server does, and hand out their public keys.
func (s *scene) make(kinds map[string]keymanagerv1.KeyType) map[string][]byte {
	s.Helper()
	p := host.Start(s, host.Options{Type: "KeyManager", Env: s.token.Env()})
	if err := p.Configure("example.org", s.token.PluginData("")); err != nil {
		s.Fatal(err)
	}
	made := map[string][]byte{}
	for id, kind := range kinds {
		response, err := p.KeyManager().GenerateKey(context.Background(), &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: kind})
		if err != nil {
			s.Fatal(err)
		}
		made[id] = response.PublicKey.PkixData
	}
	if err := p.Close(); err != nil {
		s.Fatal(err)
	}
	return made
}

func softwareKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (s *scene) evidence(status int, path string, args ...string) report {
	s.Helper()
	text, _ := s.run(status, append([]string{"evidence", "--config", s.data, "--trust-domain", "example.org",
		"--bundle", path, "--json"}, args...)...)
	var found report
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		s.Fatalf("%v\n%s", err, text)
	}
	return found
}

// verify with Go's own crypto; false if it does not.
func (p *proof) verify(t *testing.T) bool {
	t.Helper()
	block, _ := pem.Decode([]byte(*p.PublicKey))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(p.Message))
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], p.Signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], p.Signature) == nil
	}
	t.Fatalf("%T", public)
	return false
}

// byHand runs the commands that --help shows, to the letter, on what --json has printed.
func (s *scene) byHand(text string) (string, error) {
	s.Helper()
	dir := s.TempDir()
	s.write(filepath.Join(dir, "evidence.json"), text)
	help, _ := s.run(fine, "evidence", "--help")
	var script []string
	for _, line := range strings.Split(help, "\n") {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "jq ") || strings.HasPrefix(line, "openssl ") {
			script = append(script, line)
		}
	}
	if len(script) != 4 {
		s.Fatalf("not four commands: %q", script)
	}
	cmd := exec.Command("sh", "-ec", strings.Join(script, "\n"))
	cmd.Dir = dir
	output, err := cmd.CombinedOutput()
	return string(output), err
}

func TestEvidenceHoldsForEveryAuthorityWhoseKeyIsInTheToken(t *testing.T) {
	s := newScene(t, "")
	x := s.make(map[string]keymanagerv1.KeyType{"x509-CA-A": keymanagerv1.KeyType_EC_P384, "x509-CA-B": keymanagerv1.KeyType_EC_P256})
	j := s.make(map[string]keymanagerv1.KeyType{"JWT-Signer-A": keymanagerv1.KeyType_RSA_2048})
	path := s.publish("spiffe", s.authorities(x, j))
	found := s.evidence(fine, path, "--nonce", nonce)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(file); found.Bundle.SHA256 != hex.EncodeToString(sum[:]) || *found.Bundle.Sequence != 7 {
		t.Fatalf("another bundle: %+v", found.Bundle)
	}
	if found.NotInToken != 0 || len(found.Authorities) != 3 || found.Nonce != nonce || found.Token.Label != "spire" ||
		found.Token.Serial == "" || found.Token.Model == "" || found.AttributeCheck != "strict" {
		t.Fatalf("%+v", found)
	}
	ids := map[string]bool{}
	for _, p := range found.Authorities {
		ids[p.KeyID] = true
		if !p.InToken || p.Reason != nil || !p.verify(t) || !strings.Contains(p.Message, nonce) || !strings.Contains(p.Message, *p.SHA256) {
			t.Fatalf("%+v", p)
		}
		for name, want := range map[string]bool{"CKA_LOCAL": true, "CKA_NEVER_EXTRACTABLE": true, "CKA_ALWAYS_SENSITIVE": true,
			"CKA_SENSITIVE": true, "CKA_EXTRACTABLE": false, "CKA_TOKEN": true, "CKA_PRIVATE": true} {
			if is, said := p.Attributes[name]; !said || is != want {
				t.Fatalf("%s: %v", name, p.Attributes)
			}
		}
		p.Message = strings.Replace(p.Message, "00112233", "00112234", 1)
		if p.verify(t) {
			t.Fatal("another nonce verifies, too")
		}
	}
	if len(ids) != 3 || !ids["x509-CA-A"] || !ids["JWT-Signer-A"] {
		t.Fatalf("%v", ids)
	}
	table := s.command(fine, "evidence", "--bundle", path)
	s.contains(table, "3 of 3 authorities have their key in this token", "JWT-Signer-A", "never let it out",
		hex.EncodeToString([]byte("x509-CA-A")), found.Token.Serial)
}

func TestEvidenceVerifiesByTheCommandsInItsHelp(t *testing.T) {
	for _, kind := range []keymanagerv1.KeyType{keymanagerv1.KeyType_EC_P256, keymanagerv1.KeyType_EC_P384, keymanagerv1.KeyType_RSA_2048} {
		s := newScene(t, "")
		path := s.publish("jwks", s.authorities(nil, s.make(map[string]keymanagerv1.KeyType{"JWT-Signer-A": kind})))
		text, _ := s.run(fine, "evidence", "--config", s.data, "--trust-domain", "example.org", "--bundle", path, "--json")
		output, err := s.byHand(text)
		if err != nil || !strings.Contains(output, "Verified OK") {
			t.Fatalf("%v: %v\n%s", kind, err, output)
		}
		if output, err = s.byHand(strings.Replace(text, "signed a nonce", "signed a bonce", 1)); err == nil {
			t.Fatalf("%v: another message verifies, too: %s", kind, output)
		}
	}
}

func TestEvidenceSaysWhichAuthoritiesAreNotInThisToken(t *testing.T) {
	s := newScene(t, "")
	x := s.make(map[string]keymanagerv1.KeyType{"x509-CA-A": keymanagerv1.KeyType_EC_P256})
	x["x509-disk"] = softwareKey(t)
	path := s.publish("spiffe", s.authorities(x, map[string][]byte{"old-signer": softwareKey(t)}))
	found := s.evidence(wrong, path)
	if found.NotInToken != 2 || len(found.Nonce) != 64 || found.Nonce == s.evidence(wrong, path).Nonce {
		t.Fatalf("%+v", found)
	}
	for _, p := range found.Authorities {
		if p.InToken != (p.KeyID == "x509-CA-A") || p.InToken == (p.Reason != nil) || p.InToken != (len(p.Signature) > 0) {
			t.Fatalf("%+v", p)
		}
	}
	table := s.command(wrong, "evidence", "--bundle", path)
	s.contains(table, "1 of 3 authorities have their key in this token; 2 NOT", "no key of SPIRE on this token matches")
}

func TestEvidenceDoesNotHoldForAKeyThatWasImported(t *testing.T) {
	s := newScene(t, "")
	made := s.make(map[string]keymanagerv1.KeyType{"x509-CA-A": keymanagerv1.KeyType_EC_P256})
	label := s.token.Labels(t)[0]
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	s.write(filepath.Join(s.token.Dir, "key.der"), string(der))
	s.write(filepath.Join(s.token.Dir, "pub.der"), string(public))
	planted := label[:len(label)-1] + "B"
	s.token.Tool(t, "--write-object", filepath.Join(s.token.Dir, "key.der"), "--type", "privkey", "--label", planted, "--id", "0102", "--sensitive")
	s.token.Tool(t, "--write-object", filepath.Join(s.token.Dir, "pub.der"), "--type", "pubkey", "--label", planted, "--id", "0102")
	made["x509-CA-B"] = public
	found := s.evidence(wrong, s.publish("spiffe", s.authorities(made, nil)))
	if found.NotInToken != 1 {
		t.Fatalf("%+v", found)
	}
	for _, p := range found.Authorities {
		if p.InToken != (p.KeyID == "x509-CA-A") || !p.InToken && !strings.Contains(*p.Reason, "1 could not be proven") {
			t.Fatalf("%+v", p)
		}
	}
}

func TestEvidenceOfALenientLookClaimsNoOrigin(t *testing.T) {
	s := newScene(t, `attribute_check = "lenient"`)
	made := s.make(map[string]keymanagerv1.KeyType{"x509-CA-A": keymanagerv1.KeyType_EC_P256})
	path := s.publish("pem", s.authorities(made, nil))
	found := s.evidence(fine, path)
	if _, said := found.Authorities[0].Attributes["CKA_LOCAL"]; said || found.AttributeCheck != "lenient" || found.Bundle.Sequence != nil {
		t.Fatalf("%+v", found)
	}
	table := s.command(fine, "evidence", "--bundle", path)
	s.contains(table, "this does not show where a key was made", "PEM says nothing of JWT authorities")
	if strings.Contains(table, "never let it out") {
		t.Fatal(table)
	}
}

func TestEvidenceRefusesWhatItCannotUse(t *testing.T) {
	s := newScene(t, "")
	path := s.publish("spiffe", s.authorities(map[string][]byte{"a": softwareKey(t)}, nil))
	s.contains(s.command(cannot, "evidence"), "--bundle FILE is required")
	s.contains(s.command(cannot, "evidence", "--bundle", "/nowhere"), `cannot open "/nowhere"`)
	for _, bad := range []string{"0011", "0011223344556677f", "00112233445566GG", strings.Repeat("00", 65), base64.StdEncoding.EncodeToString([]byte("nonce"))} {
		s.contains(s.command(cannot, "evidence", "--bundle", path, "--nonce", bad), "--nonce: 8 to 64 bytes")
	}
	damaged := filepath.Join(s.token.Dir, "damaged")
	s.write(damaged, `{"keys": [{"use": "x509-svid", "kty": "EC"}]}`)
	s.contains(s.command(cannot, "evidence", "--bundle", damaged), damaged)
}
