package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// inside runs a command by another one, which ends in exec.
func inside(wrapper ...string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.Args = append(append([]string{}, wrapper...), append([]string{cmd.Path}, cmd.Args[1:]...)...)
		cmd.Path = wrapper[0]
	}
}

// at another time: a process whose clock is there, while ours is not. What go-plugin's host has in its
// environment would come after what a test adds, so env sets it.
func at(t *testing.T, year int, month time.Month, day int) func(*exec.Cmd) {
	library := filepath.Join(filepath.Dir(host.Binary(t)), "tests", "other_time.so")
	ahead := int(time.Until(time.Date(year, month, day, 1, 0, 0, 0, time.UTC)).Seconds())
	return inside("/usr/bin/env", "LD_PRELOAD="+library, fmt.Sprintf("OTHER_TIME=%d", ahead),
		"ASAN_OPTIONS="+os.Getenv("ASAN_OPTIONS")+":verify_asan_link_order=0")
}

// Where people run it: under a filter that knows no new system call, and as shells and units
// leave a process. The worker is killed and the plugin restarted there, too.
func TestOddPlacesCostNothing(t *testing.T) {
	old := filepath.Join(filepath.Dir(host.Binary(t)), "tests", "support", "old_runtime")
	for name, place := range map[string]struct {
		env    []string
		change func(*exec.Cmd)
	}{
		"a container runtime that is older than we are": {nil, inside(old)},
		"a umask that lets everybody in":                {nil, inside("/bin/sh", "-c", `umask 0 && exec "$0" "$@"`)},
		"a umask that keeps us out, too":                {nil, inside("/bin/sh", "-c", `umask 0777 && exec "$0" "$@"`)},
		"no standard input":                             {nil, inside("/bin/sh", "-c", `exec "$0" "$@" <&-`)},
		"few open files":                                {nil, inside("/bin/sh", "-c", `ulimit -Sn 64 && exec "$0" "$@"`)},
		"a locale with commas in its numbers":           {[]string{"LC_ALL=de_DE.UTF-8", "LANG=tr_TR.UTF-8"}, nil},
		"a clock that began in 1970":                    {nil, at(t, 1970, time.January, 1)},
		"a clock in 2058":                               {nil, at(t, 2058, time.December, 31)},
		"a folder that is gone":                         {nil, inside("/bin/sh", "-c", `d=$(mktemp -d) && cd "$d" && rmdir "$d" && exec "$0" "$@"`)},
		"no HOME, no PATH, no TMPDIR":                   {nil, inside("/usr/bin/env", "-u", "HOME", "-u", "PATH", "-u", "TMPDIR")},
	} {
		t.Run(name, func(t *testing.T) {
			token := softhsm.New(t)
			var key *keymanagerv1.PublicKey
			for range 2 {
				p := host.Start(t, host.Options{Type: "KeyManager", Env: append(token.Env(), place.env...), Change: place.change})
				scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
				if key == nil {
					key = scene.Generate(t, p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
				}
				scene.Sign(t, p, key)
				scene.Must(t, syscall.Kill(p.Workers()[0], syscall.SIGKILL))
				scene.Sign(t, p, key)
				scene.Must(t, p.Close())
			}
		})
	}
}

// A label has 30 bits for the time in which its key was made; what was made before goes on.
func TestAClockBehind2059StopsNewKeysAlone(t *testing.T) {
	token := softhsm.New(t)
	p := host.Start(t, host.Options{Type: "KeyManager", Env: token.Env()})
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	key := scene.Generate(t, p, "x509-CA-A", keymanagerv1.KeyType_EC_P256)
	scene.Must(t, p.Close())
	p = host.Start(t, host.Options{Type: "KeyManager", Env: token.Env(), Change: at(t, 2059, time.February, 1)})
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	scene.Sign(t, p, key)
	_, err := load.Generate(p, "x509-CA-B", keymanagerv1.KeyType_EC_P256)
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "the clock") {
		t.Errorf("a new key in February 2059: %v", err)
	}
	scene.Must(t, p.Close())
	p = host.Start(t, host.Options{Type: "KeyManager", Env: token.Env()})
	scene.Must(t, p.Configure(scene.Domain, token.PluginData("")))
	scene.Sign(t, p, key, scene.Generate(t, p, "x509-CA-B", keymanagerv1.KeyType_EC_P256))
}
