package commands_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"spire-hsm/peers/host"
)

// keysJSON is a file of SPIRE's disk key manager, and the block previous that names it.
func (s *scene) keysJSON(ids ...string) (path, block string) {
	s.Helper()
	keys := map[string][]byte{}
	for _, id := range ids {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			s.Fatal(err)
		}
		if keys[id], err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			s.Fatal(err)
		}
	}
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		s.Fatal(err)
	}
	path = filepath.Join(s.token.Dir, "keys.json")
	s.write(path, string(text))
	return path, fmt.Sprintf("previous { keys_file = %q }\n", path)
}

// served once, as a server does, with keys made for these ids.
func (s *scene) served(block string, ids ...string) {
	s.Helper()
	p := host.Start(s, host.Options{Type: "KeyManager", Env: s.token.Env()})
	if err := p.Configure("example.org", s.token.PluginData(block)); err != nil {
		s.Fatal(err)
	}
	for _, id := range ids {
		s.makeIn(p, id)
	}
	if err := p.Close(); err != nil {
		s.Fatal(err)
	}
}

func TestCheckTellsWhenPreviousCanGoAndKeysWhatLiesThere(t *testing.T) {
	s := newScene(t, "")
	path, block := s.keysJSON("x509-CA-A", "JWT-Signer-A")
	with := s.token.PluginData(block)
	check := func(status int, data string) string {
		s.write(s.data, data)
		return s.command(status, "check", "--no-trial")
	}
	s.contains(check(fine, with), "previous", "a start would adopt 2 keys")
	s.served(block, "x509-CA-B")
	s.contains(check(fine, with), "0 of 2 keys moved to the token", "SPIRE needs what is left there: x509-CA-A")
	s.contains(s.command(fine, "keys"), `in previous: key "x509-CA-A" (ec-p256`, `in previous: key "JWT-Signer-A"`)
	var listed struct {
		Previous []struct {
			KeyID string `json:"key_id"`
			State string `json:"state"`
		} `json:"previous"`
	}
	if err := json.Unmarshal([]byte(s.command(fine, "keys", "--json")), &listed); err != nil || len(listed.Previous) != 2 ||
		listed.Previous[0].State != "served" {
		t.Fatalf("keys --json tells of %+v (%v)", listed, err)
	}
	s.contains(s.command(fine, "prune"), "there is nothing to prune")
	s.contains(check(wrong, s.token.PluginData("")), `key "x509-CA-A" (served from previous`, "the plugin refuses a start", "accept_loss")
	s.contains(s.command(wrong, "accept"), `key "x509-CA-A" (served from previous`)
	s.served(block, "x509-CA-A")
	s.contains(check(fine, with), "1 of 2 keys moved to the token: the block can go")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.contains(check(wrong, with), "previous", "cannot be used", path)
}
