package tokens

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
)

const tpmModule = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"

type tpm struct {
	token
	socket  string
	manager *scene.Daemon
}

// newTPM is one of software, the resource manager in front of it, and the bus between the two and the
// module: all on sockets of their own.
func newTPM(t *testing.T) *tpm {
	t.Helper()
	installed(t, tpmModule, "swtpm", "tpm2-abrmd", "dbus-daemon", "tpm2_ptool", "tpm2_getrandom")
	dir, err := os.MkdirTemp("/tmp", "tpm") // socket paths have 108 bytes
	scene.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"state", "store"} {
		scene.Must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	socket := filepath.Join(dir, "tpm")
	scene.Launch(t, nil, nil, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir+"/state", "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl")
	bus := "unix:path=" + dir + "/bus"
	env := []string{"DBUS_SESSION_BUS_ADDRESS=" + bus, "TPM2TOOLS_TCTI=tabrmd:bus_type=session",
		"TPM2_PKCS11_TCTI=tabrmd:bus_type=session", "TPM2_PKCS11_STORE=" + dir + "/store"}
	scene.Launch(t, nil, nil, "dbus-daemon", "--session", "--nofork", "--nopidfile", "--address="+bus)
	scene.Eventually(t, "TPM and bus listen", func() bool {
		return scene.Listens(socket) && scene.Listens(socket+".ctrl") && scene.Listens(dir+"/bus")
	})
	k := &tpm{socket: socket, token: token{Setting: scene.Setting{Environ: env,
		Data: "module = \"" + tpmModule + "\"\ntoken = \"pkcs11:token=spire\"\npin_file = \"" + dir + "/pin\"\n" +
			"key_identifier_file = \"" + dir + "/hsm-id\"\nmax_sessions = 1\ndestroy_superseded_after = 0\n"},
		keys: map[string]keymanagerv1.KeyType{"x509-CA-A": p256, "JWT-Signer-A": rsa2048, "x509-CA-B": p384}}}
	k.manager = k.manage(t)
	scene.Eventually(t, "the TPM answers", func() bool {
		command := exec.Command("tpm2_getrandom", "4")
		command.Env = append(os.Environ(), env...)
		return command.Run() == nil
	})
	run(t, env, "tpm2_ptool", "init")
	run(t, env, "tpm2_ptool", "addtoken", "--pid=1", "--label=spire", "--userpin=12345678", "--sopin=87654321")
	scene.Write(t, dir+"/pin", "12345678\n")
	return k
}

// manage the TPM: what a manager that was killed left in there is in the next one's way. Until 1.10
// tpm2-pkcs11 keeps both halves of every key it made loaded, even when they are destroyed, and a manager
// has room for 27 objects of a process: 13 keys, where this test makes a dozen or so between two kills.
func (k *tpm) manage(t *testing.T) *scene.Daemon {
	t.Helper()
	return scene.Launch(t, k.Environ, nil, "tpm2-abrmd", "--session", "--allow-root", "--flush-all", "--max-transients=100", "--tcti=swtpm:path="+k.socket)
}

func TestATPM(t *testing.T) { newTPM(t).lives(t, 3) }

func TestATPMWhoseResourceManagerDiesCostsNoCall(t *testing.T) {
	k := newTPM(t)
	p := k.ready(t)
	var keys []*keymanagerv1.PublicKey
	for id, keyType := range k.keys {
		key := scene.Generate(t, p, id, keyType)
		keys = append(keys, key)
	}
	l := load.Start(t, p, 4, keys...)
	for range 2 {
		l.Await(20)
		k.manager.Kill()
		k.manager = k.manage(t)
		l.Await(20)
	}
	l.Round()
	l.EndWithoutFailures()
}

// The library goes on to look for keys, and makes none: a fresh worker does, within the same call.
func TestATPMWhoseResourceManagerDiedMakesTheNextKey(t *testing.T) {
	k := newTPM(t)
	p := k.ready(t)
	first := scene.Generate(t, p, "agent-svid-A", p256)
	k.manager.Kill()
	k.manager = k.manage(t)
	scene.Sign(t, p, first, scene.Generate(t, p, "agent-svid-B", p256))
}

// tpm2-pkcs11 gives a new object the handle of another once the first of all was destroyed.
func TestATPMWhoseFirstKeyIsDestroyedLosesNoOther(t *testing.T) {
	k := newTPM(t)
	p := k.ready(t)
	scene.Generate(t, p, "x509-CA-A", p256)
	var keys []*keymanagerv1.PublicKey
	for _, id := range []string{"JWT-Signer-A", "x509-CA-B", "JWT-Signer-B"} {
		keys = append(keys, scene.Generate(t, p, id, p256))
	}
	keys = append(keys, scene.Generate(t, p, "x509-CA-A", p256))
	p.Logs.Wait(t, "superseded key destroyed")
	for _, id := range []string{"x509-CA-C", "JWT-Signer-C"} {
		keys = append(keys, scene.Generate(t, p, id, p256))
	}
	scene.Must(t, p.Close())
	scene.Sign(t, k.ready(t), keys...)
}
