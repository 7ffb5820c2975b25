package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/softhsm"
)

const pin = "1234"

// newToken is a SoftHSM token of its own, gone after remove.
func newToken() (token *softhsm.Token, remove func(), err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	token = &softhsm.Token{
		Dir: dir, Tokens: filepath.Join(dir, "tokens"), Conf: filepath.Join(dir, "softhsm2.conf"),
		Label: "spire", PIN: pin, PINFile: filepath.Join(dir, "pin"),
	}
	conf := "directories.tokendir = " + token.Tokens + "\nobjectstore.backend = file\nlog.level = ERROR\n"
	for path, text := range map[string]string{token.Conf: conf, token.PINFile: pin + "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, remove, err
		}
	}
	if err := os.Mkdir(token.Tokens, 0o700); err != nil {
		return nil, remove, err
	}
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", token.Label, "--pin", pin, "--so-pin", "5678")
	cmd.Env = append(os.Environ(), token.Env()...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, remove, fmt.Errorf("softhsm2-util: %w: %s", err, output)
	}
	return token, remove, nil
}

// slowed: the module and the environment for a token that does what the script says.
func slowed(token *softhsm.Token, script string) (module string, env []string, err error) {
	if script == "" {
		return softhsm.Module(), token.Env(), nil
	}
	path := filepath.Join(token.Dir, "script")
	env = append(token.Env(), "FAULTY_MODULE="+softhsm.Module(), "FAULTY_SCRIPT="+path)
	return *faulty, env, os.WriteFile(path, []byte(script), 0o600)
}

// open loads and configures the plugin. With a script, its token is as slow as that says.
func open(token *softhsm.Token, options, script string) (*host.Plugin, error) {
	return openBinary(*binary, token, options, script)
}

func openBinary(path string, token *softhsm.Token, options, script string) (*host.Plugin, error) {
	module, env, err := slowed(token, script)
	if err != nil {
		return nil, err
	}
	data := strings.Replace(token.PluginData(options), softhsm.Module(), module, 1)
	p, err := host.Load(ctx, host.Options{Type: "KeyManager", Path: path, Env: env})
	if err != nil {
		return nil, err
	}
	if err := p.Configure("example.org", data); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("Configure: %w", err)
	}
	return p, nil
}

// newPlugin is a plugin on a token of its own; end closes the one and removes the other.
func newPlugin() (token *softhsm.Token, p *host.Plugin, end func(), err error) {
	token, remove, err := newToken()
	if err != nil {
		return nil, nil, nil, err
	}
	p, err = open(token, "", "")
	if err != nil {
		remove()
		return nil, nil, nil, err
	}
	return token, p, func() {
		_ = p.Close()
		remove()
	}, nil
}

func generate(p *host.Plugin, id string, keyType keymanagerv1.KeyType) error {
	_, err := p.KeyManager().GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keyType})
	if err != nil {
		return fmt.Errorf("GenerateKey %s: %w", id, err)
	}
	return nil
}

// nineKeys of ours: SPIRE has six or so.
func nineKeys(p *host.Plugin) error {
	for _, op := range operations {
		for i := range 3 {
			if err := generate(p, fmt.Sprintf("%s-%d", op.name, i), op.keyType); err != nil {
				return err
			}
		}
	}
	return nil
}

// rawResult is what raw_sign prints.
type rawResult struct {
	PerSecond   float64 `json:"per_second"`
	P50         float64 `json:"p50_us"`
	P99         float64 `json:"p99_us"`
	CPU         float64 `json:"cpu_us_per_op"`
	Objects     int     `json:"objects"`
	EnumerateMS float64 `json:"enumerate_ms"`
	WholeMS     float64 `json:"whole_ms"`
}

func raw(token *softhsm.Token, script string, args ...string) (result rawResult, err error) {
	module, env, err := slowed(token, script)
	if err != nil {
		return result, err
	}
	cmd := exec.Command(*rawSign, append([]string{module, pin}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(output, &result)
	}
	if err != nil {
		err = fmt.Errorf("raw_sign %v: %w", args, err)
	}
	return result, err
}

// family: a process and everything below it.
func family(pid int) []int {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if fields := statFields(pid); len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	family := []int{pid}
	for i := 0; i < len(family); i++ {
		for child, parent := range parents {
			if parent == family[i] {
				family = append(family, child)
			}
		}
	}
	return family
}

// statFields of /proc/PID/stat behind the command's name: state, ppid, ...
func statFields(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

const tick = 1e6 / 100 // microseconds; USER_HZ

// spent by a process so far.
type spent struct {
	cpu   float64 // microseconds, in steps of the kernel's tick
	wakes float64 // how often one of its threads had gone to sleep
}

func spentBy(pids []int) []spent {
	all := make([]spent, len(pids))
	for i, pid := range pids {
		if fields := statFields(pid); len(fields) > 12 {
			for _, field := range fields[11:13] {
				ticks, _ := strconv.ParseFloat(field, 64)
				all[i].cpu += ticks * tick
			}
		}
		all[i].wakes = wakes(pid)
	}
	return all
}

func wakes(pid int) (sum float64) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, thread := range threads {
		text, _ := os.ReadFile(thread)
		_, count, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		count, _, _ = strings.Cut(count, "\n")
		slept, _ := strconv.ParseFloat(strings.TrimSpace(count), 64)
		sum += slept
	}
	return sum
}

// busyMicroseconds of all CPUs so far, whoever had them (another machine too: "steal").
func busyMicroseconds() (busy float64) {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line) {
		const idle, iowait, guest = 4, 5, 9
		if i > 0 && i != idle && i != iowait && i < guest {
			ticks, _ := strconv.ParseFloat(field, 64)
			busy += ticks * tick
		}
	}
	return busy
}

// memory in MiB; 0 where only root may know.
type memory struct {
	pss     float64   // of all, as the kernel counts: less the more others map the same libraries
	alone   float64   // what it would be at most, if no other program used even libc
	private []float64 // of each
}

// memoryOf counts private pages for each process, and for "alone" those of a file once: as
// many as the process has that has most.
func memoryOf(pids []int) (m memory) {
	files := map[string]float64{}
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
		mapping, rss, own := "", 0.0, 0.0
		for _, line := range strings.Split(string(text), "\n") {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			switch fields[0] {
			case "Pss:":
				pss, _ := strconv.ParseFloat(fields[1], 64)
				m.pss += pss / 1024
			case "Rss:":
				rss, _ = strconv.ParseFloat(fields[1], 64)
			case "Anonymous:":
				anonymous, _ := strconv.ParseFloat(fields[1], 64)
				own += anonymous / 1024
				files[mapping] = max(files[mapping], (rss-anonymous)/1024)
			default:
				if len(fields) >= 5 && strings.Contains(fields[0], "-") {
					mapping = strings.Join(fields[2:], " ") // offset, device, inode, path
				}
			}
		}
		m.private = append(m.private, own)
		m.alone += own
	}
	for _, size := range files {
		m.alone += size
	}
	return m
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for _, line := range strings.Split(string(text), "\n") {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "some CPU"
}
