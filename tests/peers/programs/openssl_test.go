package programs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
)

// Names of files that nobody but an openssl.cnf brings into a process: a provider and an engine
// that come with OpenSSL, under names that are found again.
const (
	alienProvider = "alien-provider.so"
	alienEngine   = "alien-engine.so"
)

// An openssl.cnf as hosts have them. $PROVIDER, $ENGINE and $MISSING are paths.
type openssl struct {
	name string
	text string // "" is for make
	make func(path string) error
}

var configurations = []openssl{
	{name: "no default provider is activated", text: `
[init]
providers = providers
[providers]
base = one
[one]
activate = 1`},
	{name: "legacy alone", text: `
[init]
providers = providers
[providers]
legacy = one
[one]
activate = 1`},
	{name: "another provider first", text: `
[init]
providers = providers
[providers]
alien = first
default = second
[first]
module = $PROVIDER
activate = 1
[second]
activate = 1`},
	{name: "another provider is preferred", text: `
[init]
providers = providers
alg_section = algorithms
[algorithms]
default_properties = ?provider=pkcs11
[providers]
default = first
pkcs11 = second
[first]
activate = 1
[second]
module = $PROVIDER
pkcs11-module-load-behavior = early
activate = 1`},
	{name: "another provider is demanded", text: `
[init]
providers = providers
alg_section = algorithms
[algorithms]
default_properties = provider=pkcs11
[providers]
default = first
[first]
activate = 1`},
	{name: "an engine is loaded early", text: `
[init]
engines = engines
[engines]
alien = one
[one]
dynamic_path = $ENGINE
init = 1
default_algorithms = ALL`},
	{name: "fips, and its module is missing", text: `
[init]
providers = providers
alg_section = algorithms
[algorithms]
default_properties = fips=yes
[providers]
fips = one
[one]
module = $MISSING
activate = 1`},
	{name: "a section that is not there", text: `
[init]
providers = nowhere`},
	{name: "a syntax error", text: `
[init
providers = `},
	{name: "a directory", make: func(path string) error { return os.Mkdir(path, 0o700) }},
	{name: "a file that nobody may read", make: func(path string) error { return os.WriteFile(path, nil, 0) }},
	{name: "a pipe that nobody writes to", make: func(path string) error { return syscall.Mkfifo(path, 0o600) }},
}

// install it at a path, in the place of what is there.
func (o *openssl) install(t testing.TB, path string) {
	t.Helper()
	scene.Must(t, os.RemoveAll(path))
	if o.make != nil {
		scene.Must(t, o.make(path))
		return
	}
	folder := filepath.Dir(path)
	for name, original := range map[string]string{
		alienProvider: find(t, "/usr/lib/*/ossl-modules/legacy.so", "/usr/lib*/ossl-modules/legacy.so"),
		alienEngine:   find(t, "/usr/lib/*/engines-3/loader_attic.so", "/usr/lib*/engines-3/loader_attic.so"),
	} {
		replace(t, filepath.Join(folder, name), read(t, original), 0o755)
	}
	text := strings.NewReplacer("$PROVIDER", filepath.Join(folder, alienProvider), "$ENGINE",
		filepath.Join(folder, alienEngine), "$MISSING", "/nonexistent/fips.so").Replace(o.text)
	replace(t, path, []byte("openssl_conf = init\nconfig_diagnostics = 1\n"+text+"\n"), 0o600)
}

// nothingForeign that only an openssl.cnf could have brought.
func nothingForeign(t testing.TB, who string, plugin *host.Plugin) {
	t.Helper()
	if os.Geteuid() != 0 || plugin.Sanitized() {
		return
	}
	onlyMapped(t, who, plugin.PID(), ofTheFront)
	for _, pid := range plugin.Workers() {
		onlyMapped(t, "worker", pid, ofTheWorker, "p11-kit-client.so")
	}
}

func openSSL(t testing.TB, configuration string, args ...string) string {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Env = append(os.Environ(), "OPENSSL_CONF="+configuration)
	output, _ := cmd.CombinedOutput()
	return string(output)
}

// What is read here must also be seen when it is there: OpenSSL's own program loads both.
func TestTheseConfigurationsAreReadByOtherPrograms(t *testing.T) {
	for _, o := range configurations {
		if strings.Contains(o.text, "$PROVIDER") || strings.Contains(o.text, "$ENGINE") {
			path := filepath.Join(t.TempDir(), "openssl.cnf")
			o.install(t, path)
			output := openSSL(t, path, "list", "-providers", "-provider", "default") +
				openSSL(t, path, "engine")
			if !strings.Contains(output, "OpenSSL Legacy Provider") && !strings.Contains(output, "loader_attic") {
				t.Errorf("%s: openssl has loaded neither:\n%s", o.name, output)
			}
		}
	}
}

func TestNoOpenSSLConfigurationReachesUsAtAStart(t *testing.T) {
	t.Parallel()
	r := newRemote(t)
	for _, o := range configurations {
		t.Run(o.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "openssl.cnf")
			o.install(t, path)
			env := append(r.env, "OPENSSL_CONF="+path)
			data := strings.Replace(r.data(), filepath.Join(r.Dir, "hsm-id"), path+".id", 1) // a server each

			p := start(t, env...)
			scene.Must(t, p.Configure(scene.Domain, data))
			ec, rsa := scene.Generate(t, p, "ec", p256), scene.Generate(t, p, "rsa", rsa2048)
			canonical(t, ec)
			canonical(t, rsa)
			scene.Sign(t, p, ec, rsa)
			nothingForeign(t, "front", p)
			scene.Must(t, p.Close())
			for _, kind := range []string{"BundlePublisher", "Notifier"} {
				press := newPress(t)
				plugin := press.start(t, kind, env...)
				press.publish(t, plugin, kind)
				nothingForeign(t, kind, plugin)
			}
			runs(t, r.Token, data, env, "check").ends(t, 0, content)
		})
	}
}

// A worker that is replaced weeks later reads what the host has by then.
func TestNoOpenSSLConfigurationReachesARunningServer(t *testing.T) {
	r := newRemote(t)
	path := filepath.Join(t.TempDir(), "openssl.cnf")
	replace(t, path, []byte("openssl_conf = init\n[init]\n"), 0o600)
	env := append(r.env, "OPENSSL_CONF="+path)
	p := start(t, env...)
	scene.Must(t, p.Configure(scene.Domain, r.data()))
	ec, rsa := scene.Generate(t, p, "ec", p256), scene.Generate(t, p, "rsa", rsa2048)
	presses, plugins := map[string]*press{}, map[string]*host.Plugin{}
	for _, kind := range []string{"BundlePublisher", "Notifier"} {
		presses[kind] = newPress(t)
		plugins[kind] = presses[kind].start(t, kind, env...)
	}
	for _, o := range configurations {
		t.Run(o.name, func(t *testing.T) {
			o.install(t, path)
			killWorker(t, p)
			scene.Sign(t, p, ec, rsa)
			canonical(t, scene.Generate(t, p, "ec-after", p256))
			nothingForeign(t, "front", p)
			for kind, press := range presses {
				press.publish(t, plugins[kind], kind)
				nothingForeign(t, kind, plugins[kind])
			}
		})
	}
}
