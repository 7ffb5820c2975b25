/* A bundle as SPIRE sends it, as a view for bundle_encode. */
#ifndef PLUGIN_BUNDLE_MESSAGE_H
#define PLUGIN_BUNDLE_MESSAGE_H

#include "bundle.h"
#include "proto/bundle.pb-c.h"

/* Points into `message`, which must outlive it; bundle_free_view frees the rest. */
int bundle_view(const Bundle__Bundle *message, struct bundle *view, struct fault *fault);

/* For OWNED locals; accepts one that was all zero. */
void bundle_free_view(struct bundle *view);

#endif
