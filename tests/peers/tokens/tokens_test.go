// Package tokens puts the binary before tokens that are none of SoftHSM's: a TPM and NSS. Each
// goes through what a year brings: keys of every type, rotation, workers that die, a restart.
// One that is not installed is skipped, saying so.
package tokens

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

const (
	domain  = scene.Domain
	p256    = keymanagerv1.KeyType_EC_P256
	p384    = keymanagerv1.KeyType_EC_P384
	rsa2048 = keymanagerv1.KeyType_RSA_2048
)

// token is what the binary is told to find one.
type token struct {
	scene.Setting
	keys map[string]keymanagerv1.KeyType
}

// installed, all of it, or the test is skipped; as it is for a binary with a sanitizer, which would
// judge what a library of others leaks.
func installed(t testing.TB, names ...string) {
	t.Helper()
	binary, err := elf.Open(host.Binary(t))
	scene.Must(t, err)
	defer binary.Close()
	libraries, err := binary.ImportedLibraries()
	scene.Must(t, err)
	for _, library := range libraries {
		if strings.HasPrefix(library, "libasan.") || strings.HasPrefix(library, "libtsan.") {
			t.Skip("built with a sanitizer")
		}
	}
	for _, name := range names {
		_, err := exec.LookPath(name)
		if filepath.IsAbs(name) {
			_, err = os.Stat(name)
		}
		if err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

func try(env []string, name string, args ...string) ([]byte, error) {
	command := exec.Command(name, args...)
	command.Env = append(os.Environ(), env...)
	var complaints bytes.Buffer
	command.Stderr = &complaints
	output, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%s %v: %w\n%s%s", name, args, err, output, &complaints)
	}
	return output, err
}

func run(t testing.TB, env []string, name string, args ...string) []byte {
	t.Helper()
	output, err := try(env, name, args...)
	scene.Must(t, err)
	return output
}

func (k *token) ready(t *testing.T) *host.Plugin {
	t.Helper()
	p := k.Start(t)
	scene.Must(t, p.Configure(domain, k.Data))
	return p
}

// command of the operator's.
func (k *token) command(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "plugin_data")
	scene.Write(t, config, k.Data)
	return try(k.Environ, host.Binary(t), append([]string{name, "--config", config, "--trust-domain", domain}, args...)...)
}

// holds exactly so many keys, all of them served. While another process writes, tpm2-pkcs11 cannot be
// loaded (its database is locked): then nobody knows.
func (k *token) holds(t *testing.T, keys int) bool {
	t.Helper()
	var found struct{ Keys []struct{ State string } }
	output, err := k.command(t, "keys", "--json")
	if err != nil {
		t.Log(err)
		return false
	}
	scene.Must(t, json.Unmarshal(output, &found))
	for _, key := range found.Keys {
		if key.State != "current" {
			return false
		}
	}
	return len(found.Keys) == keys
}

func sign(t *testing.T, p *host.Plugin, key *keymanagerv1.PublicKey, request *keymanagerv1.SignDataRequest) {
	t.Helper()
	request.KeyId = key.Id
	response, err := p.KeyManager().SignData(context.Background(), request)
	if err == nil {
		err = load.Verify(key, request, response)
	}
	if err != nil {
		t.Errorf("SignData %v: %v", request, err)
	}
}

// signs with every hash that certificates and JWTs use, an RSA key with both paddings.
func signs(t *testing.T, p *host.Plugin, key *keymanagerv1.PublicKey) {
	t.Helper()
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		data := make([]byte, hash.Size())
		_, _ = rand.Read(data)
		sign(t, p, key, &keymanagerv1.SignDataRequest{Data: data,
			SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm(hash)}})
		for _, salt := range []int32{-1, 0} {
			if key.Type == rsa2048 {
				sign(t, p, key, &keymanagerv1.SignDataRequest{Data: data,
					SignerOpts: &keymanagerv1.SignDataRequest_PssOptions{PssOptions: &keymanagerv1.SignDataRequest_PSSOptions{
						SaltLength: salt, HashAlgorithm: keymanagerv1.HashAlgorithm(hash)}}})
			}
		}
	}
}

// lives through a year of it.
func (k *token) lives(t *testing.T, kills int) {
	t.Helper()
	p := k.Start(t)
	checked, err := k.command(t, "check")
	scene.Must(t, err)
	t.Logf("%s", checked)
	scene.Must(t, p.Configure(domain, k.Data))
	keys := map[string]*keymanagerv1.PublicKey{}
	for id, keyType := range k.keys {
		key := scene.Generate(t, p, id, keyType)
		signs(t, p, key)
		keys[id] = key
	}
	l := load.New(t, p, 0)
	for _, key := range keys {
		l.Sign(2, key)
	}
	l.Rotate("rotated")
	l.Await(20)
	for range kills {
		made := l.Made()
		scene.Eventually(t, "a key is made", func() bool { return l.Made() > made })
		p.KillWorkers()
		l.Await(20)
	}
	l.Round()
	l.EndWithoutFailures()
	if ends := len(p.Deaths()); ends != kills {
		t.Errorf("%d workers ended, %d were killed", ends, kills)
	}
	keys["rotated"] = l.Current("rotated")
	scene.Must(t, p.Close())

	p = k.ready(t)
	for _, key := range keys {
		signs(t, p, key)
	}
	scene.Eventually(t, "the token holds the keys that are served, and no other", func() bool { return k.holds(t, len(keys)) })
}
