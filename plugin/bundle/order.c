#include "plugin/bundle/order.h"

enum order_verdict order_judge(struct order *order, uint64_t file, uint64_t delivered, int64_t now)
{
    if (delivered >= file) {
        order->held = false;
        return ORDER_NEWER;
    }
    if (!order->held || order->file != file || delivered < order->delivered) {
        *order = (struct order){true, delivered, file, now};
        return ORDER_HELD;
    }
    return now - order->since >= ORDER_PAUSE ? ORDER_RESTORED : ORDER_HELD;
}
