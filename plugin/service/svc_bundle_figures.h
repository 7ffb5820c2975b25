/* The metrics of publishing (plugin/report/metrics.h). A process publishes to one path. */
#ifndef PLUGIN_SERVICE_SVC_BUNDLE_FIGURES_H
#define PLUGIN_SERVICE_SVC_BUNDLE_FIGURES_H

#include "plugin/bundle/publisher.h"

/* Any thread. begin: it is configured, as "BundlePublisher" or "Notifier" (a string constant); the
 * age counts from here until a bundle is delivered. */
void bundle_figures_begin(const char *role, const char *path);
void bundle_figures_delivered(const struct publisher_report *report);
void bundle_figures_failed(void);

/* Tells the age of the last delivery. */
void bundle_figures_measure(void);

#endif
