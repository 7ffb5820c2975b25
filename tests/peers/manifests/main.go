// Manifests reads Kubernetes objects as YAML from stdin and prints them as one JSON list. What the API
// server would refuse at sight ends it with an error: a field that its kind does not have, a value of
// another type, a key twice. Of kinds that are a cluster's own it knows no fields.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	strict "sigs.k8s.io/yaml"
)

func known() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	builder := runtime.SchemeBuilder{admissionv1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme,
		corev1.AddToScheme, rbacv1.AddToScheme, storagev1.AddToScheme}
	return scheme, builder.AddToScheme(scheme)
}

// object is nil where a document has nothing but comments.
func object(scheme *runtime.Scheme, document []byte) (any, error) {
	var meta metav1.PartialObjectMetadata
	if err := strict.Unmarshal(document, &meta); err != nil {
		return nil, err
	}
	if meta.Kind == "" {
		return nil, strict.UnmarshalStrict(document, &struct{}{})
	}
	var into any = &map[string]any{}
	if kind := meta.GroupVersionKind(); scheme.Recognizes(kind) {
		made, err := scheme.New(kind)
		if err != nil {
			return nil, err
		}
		into = made
	}
	if err := strict.UnmarshalStrict(document, into); err != nil {
		return nil, fmt.Errorf("%s %s: %w", meta.Kind, meta.Name, err)
	}
	return into, nil
}

func objects(input io.Reader) ([]any, error) {
	scheme, err := known()
	if err != nil {
		return nil, err
	}
	list := []any{}
	reader := yaml.NewYAMLReader(bufio.NewReader(input))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		made, err := object(scheme, document)
		if err != nil {
			return nil, err
		}
		if made != nil {
			list = append(list, made)
		}
	}
}

func main() {
	list, err := objects(os.Stdin)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(list)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
