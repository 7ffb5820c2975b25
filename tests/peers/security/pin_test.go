package security

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"spire-hsm/peers/faulty"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// inMemory counts how often something stands in a process's memory.
func inMemory(t *testing.T, pid int, what string) int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	scene.Must(t, err)
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	scene.Must(t, err)
	defer memory.Close()
	count := 0
	for _, line := range strings.Split(strings.TrimSpace(string(maps)), "\n") {
		var from, to uint64
		var mode string
		_, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode)
		scene.Must(t, err)
		if !strings.HasPrefix(mode, "rw") || to-from > 1<<30 { // a sanitizer's shadow is terabytes
			continue
		}
		bytesThere := make([]byte, to-from)
		n, _ := memory.ReadAt(bytesThere, int64(from))
		count += bytes.Count(bytesThere[:n], []byte(what))
	}
	return count
}

// The PIN of a file is there for the length of a login.
func TestThePINOfAFileIsInNoProcessAfterTheLogin(t *testing.T) {
	needRoot(t)
	token := aToken(t)
	inline := start(t, token)
	unsanitized(t, inline)
	scene.Must(t, inline.Configure(domain, withPIN(token, fmt.Sprintf("pin = %q", secret))))
	if inMemory(t, inline.PID(), secret) == 0 || inMemory(t, worker(t, inline), secret) == 0 {
		t.Error("an inline PIN is not found: this search finds nothing")
	}
	scene.Must(t, inline.Close())

	p := start(t, token)
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	if n := inMemory(t, p.PID(), secret); n > 0 {
		t.Errorf("it is in the front's memory, %d times", n)
	}
	if n := inMemory(t, worker(t, p), secret); n > 0 {
		t.Errorf("it is in the worker's memory, %d times", n)
	}
}

// An inline PIN has been in gRPC's buffers, which nobody wipes; our own copy goes.
func TestAnInlinePINIsWipedWhenAnotherSourceTakesItsPlace(t *testing.T) {
	needRoot(t)
	const kept = "\x03\x00\x00\x00" + secret // HSM_PIN_INLINE and the text, as in struct hsm_settings
	token := aToken(t)
	p := start(t, token)
	unsanitized(t, p)
	scene.Must(t, p.Configure(domain, withPIN(token, fmt.Sprintf("pin = %q", secret))))
	if inMemory(t, p.PID(), kept) == 0 {
		t.Error("the front's copy is not found: this search finds nothing")
	}
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	next := worker(t, p) // the old supervisor's end comes with its worker's
	for patience := time.Now().Add(time.Minute); inMemory(t, p.PID(), kept) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(patience) {
			t.Fatal("the front's copy is still there")
		}
	}
	if inMemory(t, next, secret) > 0 {
		t.Error("the new worker has it")
	}
}

// Every level of the log, every field, every status.
func TestThePINIsInNoLogLineAndNoError(t *testing.T) {
	token := aToken(t)
	wrong := filepath.Join(token.Dir, "wrong")
	scene.Must(t, os.WriteFile(wrong, []byte("wrong-"+secret+"\n"), 0o600))
	uri := "pkcs11:token=" + token.Label
	for _, pin := range []string{
		fmt.Sprintf("pin_file = %q", token.PINFile),
		`pin_env = "THE_PIN"`,
		fmt.Sprintf("pin = %q", secret),
		fmt.Sprintf("pin_file = %q", wrong),
		`pin_env = "WRONG_PIN"`,
		fmt.Sprintf("pin = %q", "wrong-"+secret),
		fmt.Sprintf("pin = %q\npin_file = %q", secret, token.PINFile),
		fmt.Sprintf("pin = [%q]", secret),
		fmt.Sprintf("pin = %q", strings.Repeat(secret, 40)),
		fmt.Sprintf("pin_env = %q", secret+"="),
		fmt.Sprintf("pin_env = %q", secret), // -expandEnv and "${THE_PIN}"
		fmt.Sprintf("pin = %q\nnonsense", secret),
		fmt.Sprintf("pinn = %q", secret),
	} {
		p := start(t, token, "THE_PIN="+secret, "WRONG_PIN=wrong-"+secret)
		errs := []error{p.Configure(domain, withPIN(token, pin)), p.Configure(domain, strings.Replace(withPIN(token, pin),
			strconv.Quote(uri), strconv.Quote(uri+"?pin-value="+secret), 1))}
		answer, err := p.Validate(domain, withPIN(token, pin))
		errs = append(errs, err)
		if strings.Contains(fmt.Sprint(errs, answer), secret) {
			t.Errorf("%s: in an error: %v %v", pin, errs, answer)
		}
		_ = p.Close()
		if len(p.Logs.Lines()) == 0 {
			t.Errorf("%s: nothing was logged", pin)
		}
		if line, found := p.Logs.Find(secret); found {
			t.Errorf("%s: in the log: %v", pin, line)
		}
	}
}

// A supervisor may restart the server for as long as it likes, every 5 s: one try is spent.
func TestARefusedPINIsTriedOnceOverRestarts(t *testing.T) {
	for _, pin := range []string{`pin_env = "WRONG_PIN"`, fmt.Sprintf("pin = %q", "wrong-"+secret), "pin_file"} {
		for _, identity := range []string{"file", "value"} {
			t.Run(strings.Fields(pin)[0]+" and key_identifier_"+identity, func(t *testing.T) {
				token := aToken(t)
				module := faulty.Wrap(t, token)
				data := module.In(withPIN(token, pin))
				if pin == "pin_file" {
					scene.Must(t, os.WriteFile(token.PINFile, []byte("wrong-"+secret+"\n"), 0o600))
					data = module.In(token.PluginData(""))
				}
				if identity == "value" { // is remembered in memory, where no test cleans up
					file := fmt.Sprintf("key_identifier_file = %q", filepath.Join(token.Dir, "hsm-id"))
					data = strings.Replace(data, file, fmt.Sprintf("key_identifier_value = %q", token.Dir), 1)
					digest := sha256.Sum256([]byte(token.Dir))
					latch := fmt.Sprintf("/dev/shm/spire-hsm-%x.pin-refused", digest[:10])
					t.Cleanup(func() { scene.Must(t, os.Remove(latch)) })
				}
				module.Play(t, "C_Login before sleep 0")
				for range 3 {
					p := start(t, token, append(module.Env(), "WRONG_PIN=wrong-"+secret)...)
					if err := p.Configure(domain, data); err == nil || !strings.Contains(err.Error(), "was refused") {
						t.Errorf("%v", err)
					}
					_ = p.Close()
				}
				if n := len(module.FiredIn(t, "C_Login")); n != 1 {
					t.Errorf("tried %d times; want 1", n)
				}
			})
		}
	}
}

// Such a library writes the PIN to its standard error, which is our log.
func TestALibraryThatWouldWriteThePINIntoTheLogIsWarnedOf(t *testing.T) {
	token := aToken(t)
	for _, name := range []string{"PKCS11SPY", "YUBIHSM_PKCS11_DBG", "CKNFAST_DEBUG"} {
		p := start(t, token, name+"="+softhsm.Module())
		scene.Must(t, p.Configure(domain, token.PluginData("")))
		line := p.Logs.Wait(t, name)
		if !strings.Contains(line.Message, "PIN") {
			t.Errorf("%v", line)
		}
		scene.Must(t, p.Close())
	}
	p := start(t, token)
	scene.Must(t, p.Configure(domain, token.PluginData("")))
	if line, found := p.Logs.Find("PKCS11SPY"); found {
		t.Errorf("without reason: %v", line)
	}
}
