package programs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"spire-hsm/peers/host"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// vm.memfd_noexec=2: no program may make a file in memory that could be executed. Front and worker
// share such a file, and no program is started from one.
func TestAHostWithoutExecutableFilesInMemoryWillDo(t *testing.T) {
	// the setting is that of a space of process ids
	const forbid = "echo 2 >/proc/sys/vm/memfd_noexec"
	inside := func(script string, args ...string) *exec.Cmd {
		return exec.Command("unshare", append([]string{"--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"}, args...)...)
	}
	if output, err := inside(forbid).CombinedOutput(); err != nil {
		t.Skipf("needs Linux 6.3 and root: %s", output)
	}
	token := softhsm.New(t)
	config := filepath.Join(token.Dir, "plugin_data")
	scene.Write(t, config, token.PluginData(""))
	cmd := inside(forbid+` && exec "$@"`, host.Binary(t), "check", "--trust-domain", scene.Domain, "--config", config)
	cmd.Env = append(os.Environ(), token.Env()...)
	output, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(output), "trial ec-p256") {
		t.Errorf("%v\n%s", err, output)
	}
}
