package lasting_test

import (
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"

	"spire-hsm/peers/host"
	"spire-hsm/peers/load"
	"spire-hsm/peers/scene"
	"spire-hsm/peers/softhsm"
)

// Somebody makes another token of that name: a running server goes on with its own.
func TestASecondTokenOfThatLabelCostsARunningServerNoCall(t *testing.T) {
	t.Parallel()
	token := softhsm.New(t)
	s := scene.Setting{Data: token.PluginData(""), Environ: token.Env()}
	p := s.Ready(t)
	l := load.Start(t, p, 4, scene.Generate(t, p, "JWT-Signer-A", keymanagerv1.KeyType_EC_P256))
	token.Init(t, "spire")
	l.KillWorkers(3, 50)
	l.EndWithoutFailures()
	refused := host.Start(t, host.Options{Type: "KeyManager", Env: token.Env()})
	if err := refused.Configure(scene.Domain, token.PluginData("")); err == nil {
		t.Error("a server that never had one of them open takes one at random")
	}
}
