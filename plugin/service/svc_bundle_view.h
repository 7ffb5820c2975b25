/* A bundle as SPIRE sends it, as a view for bundle_encode. */
#ifndef PLUGIN_SERVICE_SVC_BUNDLE_VIEW_H
#define PLUGIN_SERVICE_SVC_BUNDLE_VIEW_H

#include "plugin/bundle/bundle.h"

struct Bundle__Bundle; /* the message, proto/bundle.proto */

/* Points into `message`, which must outlive it; bundle_free_view frees the rest. */
int bundle_view(const struct Bundle__Bundle *message, struct bundle *view, struct fault *fault);

/* For OWNED locals; accepts one that was all zero. */
void bundle_free_view(struct bundle *view);

#endif
